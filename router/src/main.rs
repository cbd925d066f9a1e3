//! The `sluice` binary: parses the command line, installs the TLS provider, runs a verb.

use clap::Parser as _;
use router::cli::{Arguments, run};
use std::io::Write as _;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The only TLS provider; a second call (there is none) would be harmless.
    let _already_installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run(Arguments::parse(), &mut std::io::stdout()) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _unwritable = writeln!(std::io::stderr(), "sluice: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The reader of our output went away, as `head` does: no fault of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
