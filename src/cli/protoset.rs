//! `protoset`: the contract in binary, for tools that call a server whose reflection is off.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
};

use prost::Message;
use prost_types::FileDescriptorSet;

use super::error::Failure;
use crate::proto;

/// Prints every file of the contract and all that they import, each once.
pub(super) fn run() -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        let problem = "this is binary: redirect it, `jeton protoset > jeton.protoset`";
        return Err(Failure::Usage(problem.to_owned()));
    }
    let encoded = files()?.encode_to_vec();
    stdout
        .write_all(&encoded)
        .and_then(|()| stdout.flush())
        .map_err(Failure::io("cannot write to stdout"))
}

fn files() -> Result<FileDescriptorSet, Failure> {
    let mut names = BTreeSet::new();
    let mut all = FileDescriptorSet::default();
    let sets = [
        proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_types::pb::FILE_DESCRIPTOR_SET,
    ];
    for set in sets {
        let set = FileDescriptorSet::decode(set)
            .map_err(|error| Failure::Other(format!("cannot read the contract: {error}")))?;
        all.file.extend(set.file.into_iter().filter(|file| names.insert(file.name().to_owned())));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_closed_and_holds_every_service() {
        let set = files().unwrap();
        let names: Vec<_> = set.file.iter().map(|file| file.name()).collect();
        for file in &set.file {
            for import in &file.dependency {
                assert!(names.contains(&import.as_str()), "{import} of {}", file.name());
            }
        }
        let services = set.file.iter().flat_map(|file| {
            file.service.iter().map(move |service| format!("{}.{}", file.package(), service.name()))
        });
        let services: Vec<_> = services.collect();
        for service in [
            "jeton.token.v1.TokenService",
            "jeton.admin.v1.ClientService",
            "jeton.admin.v1.AuditService",
            "grpc.health.v1.Health",
        ] {
            assert!(services.iter().any(|found| found == service), "{service}: {services:?}");
        }
        assert!(names.contains(&"google/protobuf/timestamp.proto"), "{names:?}");
    }
}
