//! Compiles the contract with protox (no `protoc` needed) and keeps its descriptor set for reflection.

use prost::Message as _;
use std::error::Error;
use std::path::PathBuf;

const FILES: [&str; 7] = [
    "sluice/v1/ask.proto",
    "sluice/v1/decision.proto",
    "sluice/v1/embed.proto",
    "sluice/v1/gateway.proto",
    "sluice/v1/model.proto",
    "sluice/v1/policy.proto",
    "sluice/v1/usage.proto",
];

#[allow(clippy::disallowed_methods, reason = "cargo tells a build script where to write by OUT_DIR")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=sluice");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run by cargo")?);
    std::fs::write(out.join("sluice_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
