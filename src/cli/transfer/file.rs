//! File of an export: a line for each record, and last the trailer: a MAC over the lines before it
//! under the master key, or the statement that there is none.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    admin::restore_policy::VerifiedExport,
    cli::error::Failure,
    crypto::{
        chain::ChainKey,
        export::{ExportMac, FileHash},
        seal::Sealer,
    },
    store::{
        authentic::Forged,
        transfer::{ExportRecord, Verification, hex, unhex},
    },
};

/// Maximum length of a line in bytes; the largest client is far below.
const LONGEST_LINE: u64 = 4 * 1024 * 1024;

/// Last line of an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Trailer {
    /// An exporter with the master key wrote the lines before this one.
    Mac {
        /// HMAC-SHA-256 of those lines with their breaks, 64 hexadecimal digits.
        mac: String,
    },
    /// The exporter had no master key.
    Unsigned,
}

/// Writer of the lines of an export.
pub(super) struct Lines<W> {
    to: W,
    mac: Option<ExportMac>,
}

impl<W: Write> Lines<W> {
    /// Creates a writer; without a master key the trailer says that the export is unsigned.
    pub(super) fn new(to: W, sealer: Option<&Sealer>) -> Self {
        Self { to, mac: sealer.map(ExportMac::new) }
    }

    pub(super) fn item(&mut self, item: &ExportRecord) -> io::Result<()> {
        let line = line(item)?;
        if let Some(mac) = &mut self.mac {
            mac.update(&line);
        }
        self.to.write_all(&line)
    }

    /// Writes the trailer; returns the inner writer.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let trailer =
            self.mac.map_or(Trailer::Unsigned, |mac| Trailer::Mac { mac: hex(&mac.finish()) });
        self.to.write_all(&line(&trailer)?)?;
        self.to.flush()?;
        Ok(self.to)
    }
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// Export that can be read more than once.
pub(super) struct Source {
    file: File,
}

impl Source {
    /// Opens a file, `-` for stdin. Input that cannot be read twice is copied to an
    /// unnamed file first.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Self::copy(&mut io::stdin().lock());
        }
        let mut file = File::open(path).map_err(Failure::reading(path))?;
        let regular = file.metadata().map_err(Failure::reading(path))?.is_file();
        if regular { Ok(Self { file }) } else { Self::copy(&mut file) }
    }

    pub(super) fn copy(from: &mut impl Read) -> Result<Self, Failure> {
        let path = env::temp_dir().join(format!("jeton-import-{}", uuid::Uuid::new_v4()));
        let failed = || Failure::io(format!("cannot copy the export to {}", path.display()));
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed())?;
        fs::remove_file(&path).map_err(failed())?;
        io::copy(from, &mut file).map_err(failed())?;
        Ok(Self { file })
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.file.metadata().ok().map(|metadata| metadata.len())
    }

    /// Reads all of it and verifies the MAC of the file, the MAC of the keyset, and every audit
    /// chain with its seal. Also returns the records that no holder of the master key wrote.
    pub(super) fn check(
        &mut self,
        sealer: &Sealer,
        chain: &ChainKey,
    ) -> Result<(VerifiedExport, Vec<Forged>), Failure> {
        let mut verification = Verification::new(sealer, chain);
        let mut pass = self.pass(sealer)?;
        while let Some(item) = pass.read()? {
            verification.take(&item).map_err(|problem| pass.refuse(&problem))?;
        }
        let number = pass.number;
        let (sha256, signed) = pass.finish()?;
        let (counts, forged) = verification.finish().ok_or_else(|| cut_off(number))?;
        Ok((VerifiedExport { counts, sha256, signed }, forged))
    }

    /// Begins to read it from its first line.
    pub(super) fn pass(&mut self, sealer: &Sealer) -> Result<Pass<'_>, Failure> {
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(Failure::io("cannot read the export from its beginning"))?;
        let (mac, hash) = (ExportMac::new(sealer), FileHash::new());
        Ok(Pass {
            reader: BufReader::new(&self.file),
            mac,
            hash,
            trailer: None,
            number: 0,
            bytes: 0,
        })
    }
}

/// Read of an export from its first line to its trailer.
pub(super) struct Pass<'a> {
    reader: BufReader<&'a File>,
    mac: ExportMac,
    hash: FileHash,
    trailer: Option<Trailer>,
    /// Number of lines read.
    pub(super) number: u64,
    /// Number of bytes read.
    pub(super) bytes: u64,
}

impl Pass<'_> {
    /// Returns the next record; `None` after the trailer.
    pub(super) fn read(&mut self) -> Result<Option<ExportRecord>, Failure> {
        let Some(line) = self.line()? else { return Ok(None) };
        if self.trailer.is_some() {
            return Err(self.refuse("data follows the end of the export"));
        }
        match serde_json::from_slice(&line) {
            Ok(item) => {
                self.mac.update(&line);
                Ok(Some(item))
            }
            Err(error) => {
                let Ok(trailer) = serde_json::from_slice(&line) else {
                    return Err(self.not_a_record(&error));
                };
                self.trailer = Some(trailer);
                self.read()
            }
        }
    }

    /// Returns the hash of the file, and true if a MAC ends it. Refuses an invalid MAC and a
    /// missing trailer.
    pub(super) fn finish(self) -> Result<([u8; 32], bool), Failure> {
        let sha256 = self.hash.finish();
        match self.trailer {
            None => Err(cut_off(self.number)),
            Some(Trailer::Unsigned) => Ok((sha256, false)),
            Some(Trailer::Mac { mac }) if unhex(&mac).is_some_and(|mac| self.mac.check(&mac)) => {
                Ok((sha256, true))
            }
            Some(Trailer::Mac { .. }) => Err(Failure::Other(
                "the MAC of the export is invalid: the file was altered, or exported under another \
                 master key"
                    .to_owned(),
            )),
        }
    }

    /// Returns the failure of the line that was read last.
    pub(super) fn refuse(&self, problem: &str) -> Failure {
        Failure::Other(format!("line {}: {problem}", self.number))
    }

    /// Returns the next line with its line break; `None` at the end.
    fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let (mut line, number) = (Vec::new(), self.number + 1);
        let read = (&mut self.reader).take(LONGEST_LINE).read_until(b'\n', &mut line);
        if read.map_err(Failure::io(format!("cannot read line {number}")))? == 0 {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') && line.len() as u64 == LONGEST_LINE {
            return Err(Failure::Other(format!(
                "line {number} is longer than {LONGEST_LINE} bytes"
            )));
        }
        self.hash.update(&line);
        self.number = number;
        self.bytes += line.len() as u64;
        Ok(Some(line))
    }

    /// Returns the position and kind of a parse error, without the text of the line.
    fn not_a_record(&self, error: &serde_json::Error) -> Failure {
        let number = self.number;
        Failure::Other(format!(
            "line {number} is not a record of an export: {:?} at column {}",
            error.classify(),
            error.column()
        ))
    }
}

fn cut_off(number: u64) -> Failure {
    Failure::Other(format!("the export is truncated after line {number}"))
}
