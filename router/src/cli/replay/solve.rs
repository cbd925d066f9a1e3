//! `sluice replay --solve`: the threshold of a `max-quality` policy, written beside it.

use super::{ReplayArguments, write_file};
use crate::replay::log::Log;
use crate::replay::redecide::Target;
use crate::replay::spend::spend;
use anyhow::Context as _;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Solves the first target and tells what was found.
pub fn run(
    arguments: &ReplayArguments,
    targets: &[Target<'_>],
    log: &Log,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let policy = arguments.policy.as_deref().filter(|name| name.ends_with(".toml"));
    let policy = policy.context("--solve writes beside a policy file: give --policy FILE.toml")?;
    let target = targets.first().context("--solve needs --policy")?;
    let certificate =
        spend(target, log, jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now()).date().to_string())?;
    let file = Path::new(policy).with_extension("solved.toml");
    write_file(&file, certificate.to_toml()?.as_bytes())?;
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&certificate)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (mean, bound) = (certificate.mean_usd_per_1000, certificate.bound_usd_per_1000);
    let (ceiling, sure) = (certificate.ceiling_usd_per_1000, certificate.confidence * 100.0);
    match certificate.threshold {
        Some(threshold) => writeln!(
            out,
            "scores of at least {threshold} stay local, {:.1} % of {} requests; 1,000 requests cost {mean:.4} USD, at most \
             {bound:.4} at {sure} % confidence, under the ceiling of {ceiling} USD",
            certificate.local_share * 100.0,
            certificate.n
        )?,
        None => writeln!(
            out,
            "{} requests prove no threshold under {ceiling} USD for 1,000 requests (bound {bound:.4} at the first): everything \
             stays local; record more",
            certificate.n
        )?,
    }
    writeln!(out, "{} of the costs were recorded, the others come from prices", certificate.paid)?;
    writeln!(out, "{}", file.display())?;
    Ok(ExitCode::SUCCESS)
}
