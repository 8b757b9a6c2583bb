//! Sources of the crate, parsed, without code that is there for tests only.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, File, Ident, ImplItem, Item, ItemFn, ItemImpl, ItemMod, ItemStruct, ItemUse, Macro,
    Meta, UseName, UseRename, UseTree, Visibility,
    visit::{self, Visit},
};

/// A file below `src`.
pub(crate) struct Source {
    /// Path below `src`.
    pub(crate) path: String,
    /// Path of its module from the crate's root.
    pub(crate) module: Vec<String>,
    pub(crate) text: String,
    /// Its items, without those for tests.
    pub(crate) syntax: File,
}

/// A path that code names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// As it is written, each name of a group apart.
    pub(crate) written: Vec<String>,
    /// From the crate's root, if it begins with `crate`, `self` or `super`.
    pub(crate) resolved: Option<Vec<String>>,
    pub(crate) line: usize,
}

impl Source {
    /// Parses the file `path` below `src`.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let mut module: Vec<String> =
            path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|name| name == "mod") || path == "lib.rs" {
            module.pop();
        }
        let mut syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        drop_tests(&mut syntax.items);
        Self { path: path.to_owned(), module, text: text.to_owned(), syntax }
    }

    /// The part of the crate that it belongs to.
    pub(crate) fn room(&self) -> &str {
        room(&self.path)
    }

    /// Every path it names: imports, paths in code, in attributes and in the tokens of macros.
    pub(crate) fn references(&self) -> Vec<Reference> {
        let mut paths = Paths { module: self.module.clone(), found: Vec::new() };
        paths.visit_file(&self.syntax);
        paths.found
    }

    /// Its lines without comments and without tests behind the code.
    pub(crate) fn code(&self) -> String {
        // One line that is there for tests only, in the middle of a file, must not hide the code
        // that follows.
        let code = self.text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// The part of the crate that a file below `src` belongs to.
pub(crate) fn room(path: &str) -> &str {
    path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

/// All files below `src`, without those of tests.
pub(crate) fn sources() -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    files
        .iter()
        .map(|path| (path, path.strip_prefix(&root).unwrap().to_str().unwrap()))
        .filter(|(_, name)| !name.contains("tests"))
        .map(|(path, name)| Source::new(name, &fs::read_to_string(path).unwrap()))
        .collect()
}

/// Collects the paths of a file.
struct Paths {
    /// The module at this place of the file.
    module: Vec<String>,
    found: Vec<Reference>,
}

impl Paths {
    fn add(&mut self, written: Vec<String>, line: usize) {
        let resolved = self.resolve(&written);
        self.found.push(Reference { written, resolved, line });
    }

    fn resolve(&self, written: &[String]) -> Option<Vec<String>> {
        let mut path = self.module.clone();
        let mut names = written.iter().map(String::as_str).peekable();
        match names.next()? {
            "crate" => path.clear(),
            "self" => {}
            "super" => {
                path.pop();
                while names.next_if_eq(&"super").is_some() {
                    path.pop();
                }
            }
            _ => return None,
        }
        path.extend(names.filter(|name| *name != "self" && *name != "*").map(str::to_owned));
        Some(path)
    }

    fn add_tree(&mut self, tree: &UseTree, prefix: &[String]) {
        let with = |name: &Ident| [prefix, &[name.to_string()]].concat();
        if let UseTree::Path(path) = tree {
            self.add_tree(&path.tree, &with(&path.ident));
        } else if let UseTree::Name(UseName { ident, .. })
        | UseTree::Rename(UseRename { ident, .. }) = tree
        {
            self.add(with(ident), ident.span().start().line);
        } else if let UseTree::Glob(glob) = tree {
            self.add([prefix, &["*".to_owned()]].concat(), glob.star_token.span.start().line);
        } else if let UseTree::Group(group) = tree {
            group.items.iter().for_each(|tree| self.add_tree(tree, prefix));
        } else {
            panic!("an import of a kind that this guard does not know");
        }
    }

    /// Adds every `name::name` among tokens that are not parsed.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut line, mut colons) = (Vec::new(), 0, 0);
        for token in tokens {
            match token {
                TokenTree::Ident(name) if colons == 2 => {
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Ident(name) => {
                    self.end_of_path(&mut path, line);
                    line = name.span().start().line;
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end_of_path(&mut path, line);
                    colons = 0;
                    self.add_tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.end_of_path(&mut path, line);
                    colons = 0;
                }
            }
        }
        self.end_of_path(&mut path, line);
    }

    fn end_of_path(&mut self, path: &mut Vec<String>, line: usize) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.add(path, line);
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.module.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        self.add_tree(&import.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let line = path.segments.first().map_or(0, |name| name.ident.span().start().line);
        if names.len() > 1 {
            self.add(names, line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.add_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        self.visit_path(attribute.path());
        if let Meta::List(list) = &attribute.meta {
            self.add_tokens(list.tokens.clone());
        }
    }

    /// `pub(in crate::room)` names who may come in, and imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

/// Returns true if the attributes say `#[cfg(test)]`.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        list.is_ok_and(|list| list.path.is_ident("cfg") && list.tokens.to_string() == "test")
    })
}

/// Drops what is there for tests only.
fn drop_tests(items: &mut Vec<Item>) {
    items.retain(|item| {
        let (Item::Fn(ItemFn { attrs, .. })
        | Item::Impl(ItemImpl { attrs, .. })
        | Item::Mod(ItemMod { attrs, .. })
        | Item::Struct(ItemStruct { attrs, .. })
        | Item::Use(ItemUse { attrs, .. })) = item
        else {
            return true;
        };
        !is_for_tests(attrs)
    });
    for item in items {
        if let Item::Mod(ItemMod { content: Some((_, items)), .. }) = item {
            drop_tests(items);
        } else if let Item::Impl(ItemImpl { items, .. }) = item {
            items.retain(
                |item| !matches!(item, ImplItem::Fn(function) if is_for_tests(&function.attrs)),
            );
        }
    }
}

/// Room after room that `text`, as the file `path`, names.
#[cfg(test)]
fn named(path: &str, text: &str) -> Vec<String> {
    let references = Source::new(path, text).references();
    references.into_iter().filter_map(|reference| reference.resolved?.first().cloned()).collect()
}

/// The guard once took only names with `::` behind them for imports.
#[test]
fn a_bare_name_in_a_group_is_an_import() {
    let text = "use crate::{model::{Scope, text::Text}, telemetry, clock::{self}};";
    assert_eq!(named("config/check.rs", text), ["model", "model", "telemetry", "clock"]);
    assert_eq!(named("config/check.rs", "use crate::telemetry;"), ["telemetry"]);
    assert_eq!(named("config/check.rs", "use crate::telemetry as log;"), ["telemetry"]);
    assert_eq!(named("config/check.rs", "use crate::telemetry::*;"), ["telemetry"]);
}

#[test]
fn a_path_through_parents_is_an_import() {
    let text = "use super::super::{clock, oauth::{Authority, keys}}; use super::load;";
    assert_eq!(named("config/check.rs", text), ["clock", "oauth", "oauth", "config"]);
    assert_eq!(
        named("config/mod.rs", "use super::clock; use self::load::load;"),
        ["clock", "config"]
    );
    assert_eq!(
        named("config/check.rs", "mod inner { use super::super::super::clock::Skew; }"),
        ["clock"]
    );
}

#[test]
fn a_path_in_code_in_a_macro_or_in_an_attribute_is_an_import() {
    let text = r#"
        fn f(a: Vec<crate::store::Change>) -> impl Iterator<Item = super::super::clock::Skew> {
            tokio::select! { x = async { crate::api::f(1, &[super::load::DEFAULTS]) } => {} }
        }
        #[derive(crate::server::Derive)]
        struct S;
    "#;
    assert_eq!(named("config/check.rs", text), ["store", "clock", "api", "config", "server"]);
}

#[test]
fn what_is_for_tests_imports_nothing() {
    let text = "
        #[cfg(test)] use crate::api;
        #[cfg(test)] mod tests { use crate::server; }
        impl S { #[cfg(test)] fn f() { crate::cli::run() } }
        pub(in crate::oauth) fn f() {}
        use crate::clock;
    ";
    assert_eq!(named("config/check.rs", text), ["clock"]);
}
