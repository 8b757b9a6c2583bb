//! Compiles `proto/` without `protoc` and keeps the descriptor set that reflection serves.

use std::{env, error::Error, fs, path::PathBuf};

const PROTOS: [&str; 6] = [
    "jeton/token/v1/token_service.proto",
    "jeton/admin/v1/client_service.proto",
    "jeton/admin/v1/audience_service.proto",
    "jeton/admin/v1/key_service.proto",
    "jeton/admin/v1/revocation_service.proto",
    "jeton/admin/v1/audit_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    // Source info makes `grpcurl describe` show the comments of the proto files.
    compiler.include_source_info(true).include_imports(true).open_files(PROTOS)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // The encoded set keeps custom options, which the decoded one loses.
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
