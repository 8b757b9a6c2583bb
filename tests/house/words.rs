//! Names that can be searched for: no type name that means more than two things, no word of a
//! story, no doc comment that begins with a question.

use std::collections::BTreeMap;

use syn::{
    Field, ImplItemConst, ItemConst, ItemEnum, ItemMod, ItemStatic, ItemStruct, ItemTrait,
    ItemType, Signature, TraitItemConst, Variant,
    visit::{self, Visit},
};

use crate::source::{Source, sources};

/// Names that each module may give to a type of its own: what they mean is clear from the module.
const COMMON: &[&str] =
    &["Args", "Command", "Error", "OpenError", "Options", "Request", "Response", "Result"];

/// Most types of any other name.
const MOST: usize = 2;

/// Words of a story, which do not say what a thing is. No name of an item, a field or a variant has
/// one of them, and no comment.
const STORY: &[&str] = &[
    "brings",
    "brought",
    "came",
    "comes",
    "heard",
    "hear",
    "hears",
    "lawful",
    "mended",
    "nobody",
    "settle",
    "settled",
    "settles",
    "somebody",
    "stands",
    "stood",
    "struggle",
    "struggles",
    "tell",
    "tells",
    "told",
    "whoever",
];

/// Words that are not enough for a name on their own.
const VAGUE: &[&str] = &["look", "others", "over", "said", "says", "seen", "some"];

/// Words that a doc comment does not begin with: it would leave the answer to the reader.
const QUESTIONS: &[&str] =
    &["How", "What", "When", "Where", "Whether", "Who", "Whoever", "Whose", "Why"];

/// A name that is given in a file.
struct Name {
    name: String,
    is_type: bool,
    place: String,
}

struct Names<'s> {
    source: &'s Source,
    found: Vec<Name>,
}

impl Names<'_> {
    fn add(&mut self, ident: &syn::Ident, is_type: bool) {
        let place = format!("src/{}:{}", self.source.path, ident.span().start().line);
        self.found.push(Name { name: ident.to_string(), is_type, place });
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        self.add(&item.ident, true);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        self.add(&item.ident, true);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast ItemTrait) {
        self.add(&item.ident, true);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast ItemType) {
        self.add(&item.ident, true);
        visit::visit_item_type(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.add(&item.ident, false);
        visit::visit_item_mod(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast ItemConst) {
        self.add(&item.ident, false);
        visit::visit_item_const(self, item);
    }

    fn visit_impl_item_const(&mut self, item: &'ast ImplItemConst) {
        self.add(&item.ident, false);
        visit::visit_impl_item_const(self, item);
    }

    fn visit_trait_item_const(&mut self, item: &'ast TraitItemConst) {
        self.add(&item.ident, false);
        visit::visit_trait_item_const(self, item);
    }

    fn visit_item_static(&mut self, item: &'ast ItemStatic) {
        self.add(&item.ident, false);
        visit::visit_item_static(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        self.add(&signature.ident, false);
        visit::visit_signature(self, signature);
    }

    fn visit_field(&mut self, field: &'ast Field) {
        if let Some(name) = &field.ident {
            self.add(name, false);
        }
        visit::visit_field(self, field);
    }

    fn visit_variant(&mut self, variant: &'ast Variant) {
        self.add(&variant.ident, false);
        visit::visit_variant(self, variant);
    }
}

fn names(sources: &[Source]) -> Vec<Name> {
    let of = |source| {
        let mut names = Names { source, found: Vec::new() };
        names.visit_file(&source.syntax);
        names.found
    };
    sources.iter().flat_map(of).collect()
}

/// Words of a name in lower case: `OwnChain`, `own_chain` and `OWN_CHAIN` have two.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for c in name.chars() {
        if c == '_' || (c.is_uppercase() && after_lower) {
            words.push(String::new());
        }
        after_lower = c.is_lowercase() || c.is_numeric();
        if let Some(word) = words.last_mut().filter(|_| c != '_') {
            word.extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Returns true if a name has a word of a story, or is nothing but a vague one.
fn is_story(name: &str) -> bool {
    let words = words(name);
    let vague = |word: &str| VAGUE.contains(&word);
    words.iter().any(|word| STORY.contains(&word.as_str()))
        || matches!(words.as_slice(), [word] if vague(word))
}

/// Places of doc comments that begin with a question word, with their first lines.
fn questions(source: &Source) -> Vec<String> {
    let doc = |line: &str| {
        let line = line.trim_start();
        line.strip_prefix("///")
            .or_else(|| line.strip_prefix("//!"))
            .map(str::trim)
            .map(str::to_owned)
    };
    let code = source.text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let (mut found, mut goes_on) = (Vec::new(), false);
    for (number, line) in (1..).zip(code.lines()) {
        let text = doc(line);
        if let Some(text) = text.as_ref().filter(|_| !goes_on) {
            let first = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            if QUESTIONS.contains(&first) {
                found.push(format!("src/{}:{number}: {text}", source.path));
            }
        }
        goes_on = text.is_some();
    }
    found
}

/// Lines of comments that have a word of a story.
fn prose(source: &Source) -> Vec<String> {
    let code = source.text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let has_word = |line: &&str| {
        let comment = line.trim_start().starts_with("//");
        comment
            && line
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| STORY.contains(&word.to_lowercase().as_str()))
    };
    let lines = (1..).zip(code.lines()).filter(|(_, line)| has_word(line));
    lines.map(|(number, line)| format!("src/{}:{number}: {}", source.path, line.trim())).collect()
}

#[test]
fn a_type_name_means_at_most_two_things() {
    let mut types = BTreeMap::<_, Vec<_>>::new();
    for name in names(&sources()).into_iter().filter(|name| name.is_type) {
        types.entry(name.name).or_default().push(name.place);
    }
    types.retain(|name, places| !COMMON.contains(&name.as_str()) && places.len() > MOST);
    assert!(types.is_empty(), "give these types names that tell them apart: {types:#?}");
}

#[test]
fn no_name_has_a_word_of_a_story() {
    let found: Vec<_> = names(&sources())
        .into_iter()
        .filter(|name| is_story(&name.name))
        .map(|name| format!("{}: {}", name.place, name.name))
        .collect();
    assert!(
        found.is_empty(),
        "names have a word that nobody can search for: use the field's word (notify, receive, \
         report, active, caller ...): {found:#?}",
    );
}

#[test]
fn no_comment_has_a_word_of_a_story() {
    let found: Vec<_> = sources().iter().flat_map(prose).collect();
    assert!(
        found.is_empty(),
        "comments have a word that nobody can search for: use the field's word (notify, receive, \
         report, valid, expired, caller, node ...): {found:#?}",
    );
}

#[test]
fn no_doc_comment_begins_with_a_question() {
    let found: Vec<_> = sources().iter().flat_map(questions).collect();
    assert!(
        found.is_empty(),
        "doc comments begin with a question word: begin with a noun phrase or a verb (\"Outcome of \
         a write.\", \"Returns true if ...\"): {found:#?}",
    );
}

#[test]
fn names_come_apart_into_words() {
    assert_eq!(words("OwnChain"), ["own", "chain"]);
    assert_eq!(words("own_chain"), words("OWN_CHAIN"));
    assert_eq!(words("Sha256Sum"), ["sha256", "sum"]);
    assert!(is_story("record_heard") && is_story("WasTold") && is_story("SOME"));
    assert!(!is_story("some_limit") && !is_story("shoulder") && !is_story("retold"));
}

#[test]
fn a_question_is_found_where_a_comment_begins() {
    let text = "//! Whether it is.\n\n/// A thing.\n/// What it is.\nstruct A;\n/// What's it?\n\
                /// B.\nstruct B;\n// What\n#[cfg(test)]\nmod tests {\n/// Who\nfn f() {}\n}\n";
    let found = questions(&Source::new("a.rs", text));
    assert_eq!(found, ["src/a.rs:1: Whether it is.", "src/a.rs:6: What's it?"]);
}
