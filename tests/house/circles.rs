//! Import circles between files.
//!
//! A file imports another if it names a path that leads into that file's module, or to one of its
//! items, and to no module below. A file and the `mod.rs` of a folder that it lies in do not count,
//! in neither direction: a parent is made of its children, and they may use what it holds for all
//! of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, sources};

/// Files with the files each imports.
type Imports<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn imports(sources: &[Source]) -> Imports<'_> {
    let by_module: BTreeMap<&[String], &str> =
        sources.iter().map(|source| (source.module.as_slice(), source.path.as_str())).collect();
    let of = |source: &Source| {
        let paths = source.references().into_iter().filter_map(|reference| reference.resolved);
        paths
            .filter_map(|path| {
                let module = (0..=path.len())
                    .rev()
                    .find_map(|end| by_module.get_key_value(path.get(..end)?));
                let (module, file) = module?;
                let contains =
                    module.starts_with(&source.module) || source.module.starts_with(module);
                (!contains).then_some(*file)
            })
            .collect()
    };
    sources.iter().map(|source| (source.path.as_str(), of(source))).collect()
}

/// Files that can be reached from `start`.
fn reached<'a>(imports: &Imports<'a>, start: &'a str) -> BTreeSet<&'a str> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![start]);
    while let Some(file) = next.pop() {
        next.extend(imports.get(file).into_iter().flatten().filter(|to| reached.insert(**to)));
    }
    reached
}

/// Sets of files each of which reaches all the others and itself.
fn circles<'a>(imports: &Imports<'a>) -> BTreeSet<BTreeSet<&'a str>> {
    let all: BTreeMap<&str, BTreeSet<&'a str>> =
        imports.keys().map(|file| (*file, reached(imports, file))).collect();
    let mut circles = BTreeSet::new();
    for (file, reached) in &all {
        let leads_back = |other: &&str| all.get(*other).is_some_and(|to| to.contains(file));
        let circle: BTreeSet<&'a str> = reached.iter().copied().filter(leads_back).collect();
        if !circle.is_empty() {
            circles.insert(circle);
        }
    }
    circles
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    let imports = imports(&sources);
    let circles = circles(&imports);
    let arrows: Vec<Vec<String>> = circles
        .iter()
        .map(|circle| {
            let inside = |from: &&str| {
                let to = imports.get(*from).into_iter().flatten();
                let to: Vec<_> = to.filter(|to| circle.contains(*to)).copied().collect();
                format!("{from} -> {}", to.join(", "))
            };
            circle.iter().map(inside).collect()
        })
        .collect();
    assert!(arrows.is_empty(), "move what both sides need to a file of its own: {arrows:#?}");
}

#[test]
fn a_circle_is_found() {
    let sources = [
        Source::new("a/mod.rs", "mod b; mod c; mod d; use self::b::B; pub struct A;"),
        Source::new("a/b.rs", "use super::{A, c}; pub struct B;"),
        Source::new("a/c.rs", "use crate::a::{A, d::D};"),
        Source::new("a/d.rs", "pub struct D; fn f() { vec![super::b::B] }"),
        Source::new("e.rs", "use crate::a::b::B;"),
    ];
    assert_eq!(circles(&imports(&sources)), [["a/b.rs", "a/c.rs", "a/d.rs"].into()].into());
    assert_eq!(circles(&imports(&sources[..3])), [].into(), "a parent and its children make none");
}
