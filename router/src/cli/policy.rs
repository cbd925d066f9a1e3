//! `sluice policy`: check policy files as `serve` would, or list what a running gateway has in force.

use super::connection::{Connection, describe};
use crate::catalog::Catalog;
use crate::policy::Policy;
use crate::toml_file::Problem;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use sluice_proto::v1;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyVerb {
    /// Report every problem of policy files, their embedded tests included.
    Check(CheckArguments),
    /// List the policies of a running gateway: thresholds, certificates, and what it is learning.
    List(ListArguments),
}

/// Arguments of `policy list`.
#[derive(Debug, Args)]
pub struct ListArguments {
    /// Where the gateway is.
    #[command(flatten)]
    pub connection: Connection,
}

/// Arguments of `policy check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Policy files; a `models.toml` beside one is its catalog.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Catalog file.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
}

/// Runs `policy`.
pub fn run(verb: &PolicyVerb, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match verb {
        PolicyVerb::Check(arguments) => check(arguments, out),
        PolicyVerb::List(arguments) => super::client_runtime()?.block_on(list(arguments, out)),
    }
}

async fn list(arguments: &ListArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut client = arguments.connection.open().await?;
    let listed = client.policy.list(v1::ListRequest::default()).await.map_err(|status| describe(&status))?.into_inner();
    for policy in listed.policies {
        let threshold = policy.threshold.map_or("all remote".to_owned(), |from| format!("local from score {from:.3}"));
        let default = if policy.is_default { ", default" } else { "" };
        let certificate = policy.certificate.trim_start_matches("certificate ");
        writeln!(out, "{}@{}{default}: {threshold}\n  certificate {certificate}", policy.name, policy.hash)?;
    }
    for problem in &listed.reload_problems {
        writeln!(out, "not in force, {}:{}:{} {}", problem.file, problem.line, problem.column, problem.message)?;
    }
    Ok(if listed.reload_problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(arguments: &CheckArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for file in &arguments.files {
        let text = read(file)?;
        let catalog_file = arguments.catalog.clone().unwrap_or_else(|| file.with_file_name("models.toml"));
        let catalog_text = match arguments.catalog.is_none() && !catalog_file.exists() {
            true => include_str!("../../../policies/models.toml").to_owned(),
            false => read(&catalog_file)?,
        };
        let checked = match Catalog::parse(&catalog_file.display().to_string(), &catalog_text) {
            Ok(catalog) => check_one(file, &text, &catalog).map_err(|found| (text, found)),
            Err(found) => Err((catalog_text, found)),
        };
        match checked {
            Ok(policy) => {
                writeln!(out, "{}: good ({}@{})", file.display(), policy.reference.name, policy.reference.hash)?;
                if let (Some(name), Some(scorer)) = (&policy.scorer_file, policy.filed()) {
                    writeln!(out, "  scored by {name}, version {}: {}", scorer.version(), scorer.describe())?;
                }
            }
            Err((text, problems)) => {
                print_problems(&text, &problems, out)?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// A policy by itself with its scorer file, and its experiment against the policies beside it.
fn check_one(file: &Path, text: &str, catalog: &Catalog) -> Result<Policy, Vec<Problem>> {
    let name = file.display().to_string();
    let mut policy = Policy::parse(&name, text, catalog)?;
    policy.score_beside(file, catalog).map_err(|problem| vec![problem])?;
    if policy.experiment.is_none() {
        return Ok(policy);
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let named = |path: PathBuf| {
        let text = std::fs::read_to_string(path).ok()?;
        text.parse::<toml::Table>().ok()?.get("name")?.as_str().map(str::to_owned)
    };
    let known: Vec<String> =
        beside.filter(|path| path.extension().is_some_and(|end| end == "toml")).filter_map(named).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    match policy.unknown_candidate(&name, &known) {
        Some(problem) => Err(vec![problem]),
        None => Ok(policy),
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))
}

/// Shows problems with the lines they are about.
pub fn print_problems(text: &str, problems: &[Problem], out: &mut dyn Write) -> std::io::Result<()> {
    let renderer = Renderer::plain();
    for problem in problems {
        let start: usize = text.split_inclusive('\n').take(problem.line - 1).map(str::len).sum();
        let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        let before: usize = line.chars().take(problem.column - 1).map(char::len_utf8).sum();
        let at = start + before;
        let end = start + line.len();
        let title = match problem.key.is_empty() {
            true => problem.message.clone(),
            false => format!("`{}`: {}", problem.key, problem.message),
        };
        let label = if problem.suggestion.is_empty() { "here" } else { problem.suggestion.as_str() };
        let snippet = Snippet::source(text).path(&problem.file);
        let snippet = snippet.annotation(AnnotationKind::Primary.span(at..end.max(at)).label(label));
        let report = [Group::with_title(Level::ERROR.primary_title(&title)).element(snippet)];
        writeln!(out, "{}\n", renderer.render(&report))?;
    }
    let count = problems.len();
    writeln!(out, "{count} problem{}", if count == 1 { "" } else { "s" })
}
