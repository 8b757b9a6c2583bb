//! I8: secrets that were given out are in no log and in no file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::fleet::verdict::Violation;

/// Bytes of a file that are searched in one piece.
const PIECE: usize = 1 << 20;

/// Every place where one of the secrets is; the violation does not repeat it.
pub(crate) fn judge(secrets: &[String], places: &[PathBuf]) -> Vec<Violation> {
    let mut found = Vec::new();
    let longest = secrets.iter().map(String::len).max().unwrap_or(0);
    // What most of a database's files is: skipped.
    let empty = vec![0; PIECE + longest];
    for path in places.iter().flat_map(|place| files(place)) {
        let Ok(bytes) = fs::read(&path) else { continue };
        for from in (0..bytes.len()).step_by(PIECE) {
            let piece = &bytes[from..bytes.len().min(from + PIECE + longest)];
            if *piece == empty[..piece.len()] {
                continue;
            }
            let piece = String::from_utf8_lossy(piece);
            for (number, _) in
                secrets.iter().enumerate().filter(|(_, secret)| piece.contains(secret.as_str()))
            {
                found.push(Violation::new(
                    "I8",
                    format!("the secret number {number} is in {}", path.display()),
                ));
            }
        }
    }
    found
}

fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    // What is gone by now holds nothing.
    let Ok(entries) = fs::read_dir(place) else { return Vec::new() };
    entries.flatten().flat_map(|entry| files(&entry.path())).collect()
}
