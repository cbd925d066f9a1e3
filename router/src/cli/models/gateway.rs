//! `sluice models list|load|unload|pull|inspect` of a running gateway.

use super::bar::Bar;
use super::{ListArguments, NameArguments, PullArguments};
use crate::cli::connection::describe;
use crate::cli::table::{self, Align, bytes};
use anyhow::bail;
use serde_json::{Value, json};
use sluice_proto::v1;
use std::io::Write;

/// Lists models with state and memory.
pub async fn list(arguments: &ListArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut client = arguments.connection.open().await?;
    let answer = client.models.list_models(v1::ListModelsRequest {}).await.map_err(|status| describe(&status))?;
    let told = answer.into_inner();
    if arguments.json {
        let models: Vec<Value> = told.models.iter().map(object).collect();
        let told = json!({
            "models": models,
            "memory_bytes": told.memory_bytes,
            "memory_budget_bytes": told.memory_budget_bytes,
        });
        writeln!(out, "{told}")?;
        return Ok(());
    }
    let header = [
        ("model", Align::Left),
        ("state", Align::Left),
        ("memory", Align::Right),
        ("running", Align::Right),
        ("source", Align::Left),
    ];
    let row = |model: &v1::ModelStatus| {
        let memory = if model.memory_bytes > 0 { bytes(model.memory_bytes.unsigned_abs()) } else { "-".to_owned() };
        vec![model.name.clone(), progressing(model), memory, model.running.to_string(), model.source.clone()]
    };
    table::print(out, &header, &told.models.iter().map(row).collect::<Vec<_>>())?;
    for model in told.models.iter().filter(|model| !model.problem.is_empty()) {
        writeln!(out, "{}: {}", model.name, model.problem)?;
    }
    let used = bytes(told.memory_bytes.unsigned_abs());
    match told.memory_budget_bytes {
        Some(budget) => writeln!(out, "memory: {used} of {}", bytes(budget.unsigned_abs()))?,
        None => writeln!(out, "memory: {used}, without a bound")?,
    }
    Ok(())
}

/// Loads or swaps a model.
pub async fn load(arguments: &NameArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut client = arguments.connection.open().await?;
    let request = v1::LoadModelRequest { name: arguments.model.clone() };
    let answer = client.models.load_model(request).await.map_err(|status| describe(&status))?;
    let model = answer.into_inner().status.unwrap_or_default();
    if arguments.json {
        writeln!(out, "{}", object(&model))?;
    } else {
        writeln!(out, "{} is loaded: {}", model.name, bytes(model.memory_bytes.unsigned_abs()))?;
    }
    Ok(())
}

/// Unloads a model.
pub async fn unload(arguments: &NameArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut client = arguments.connection.open().await?;
    let request = v1::UnloadModelRequest { name: arguments.model.clone() };
    let answer = client.models.unload_model(request).await.map_err(|status| describe(&status))?.into_inner();
    let model = answer.status.unwrap_or_default();
    if arguments.json {
        let mut told = object(&model);
        told["was_loaded"] = json!(answer.was_loaded);
        writeln!(out, "{told}")?;
    } else if answer.was_loaded {
        writeln!(out, "{} is unloaded; requests under way finish first", model.name)?;
    } else {
        writeln!(out, "{} was not loaded", model.name)?;
    }
    Ok(())
}

/// Tells all that the gateway knows of a model.
pub async fn inspect(arguments: &NameArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut client = arguments.connection.open().await?;
    let request = v1::GetModelRequest { name: arguments.model.clone() };
    let answer = client.models.get_model(request).await.map_err(|status| describe(&status))?;
    super::inspect::answer(answer.get_ref(), arguments.json, out)
}

/// Has the gateway fetch a model, and shows how far it is.
pub async fn pull(arguments: &PullArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut client = arguments.connection.open().await?;
    let request = v1::PullModelRequest { name: arguments.model.clone() };
    let answer = client.models.pull_model(request).await.map_err(|status| describe(&status))?;
    let (mut steps, bar) = (answer.into_inner(), Bar::new());
    loop {
        let step = steps.message().await.inspect_err(|_| bar.clear()).map_err(|status| describe(&status))?;
        let Some(step) = step else { bail!("the gateway ended the download without a word") };
        if let Some(progress) = &step.progress {
            let (done, total) = (progress.done_bytes.unsigned_abs(), progress.total_bytes.unsigned_abs());
            bar.tell(&progress.file, done, total);
            if arguments.json {
                writeln!(out, "{}", progress_object(progress))?;
            }
        }
        if let Some(model) = &step.status {
            bar.clear();
            if arguments.json {
                writeln!(out, "{}", object(model))?;
            } else {
                writeln!(out, "{} is {}", model.name, state(model))?;
            }
            return Ok(());
        }
    }
}

/// A state's name.
pub fn state(model: &v1::ModelStatus) -> &'static str {
    match model.state() {
        v1::ModelState::Unspecified => "unknown",
        v1::ModelState::Available => "available",
        v1::ModelState::Downloadable => "downloadable",
        v1::ModelState::Downloading => "downloading",
        v1::ModelState::Loading => "loading",
        v1::ModelState::Loaded => "loaded",
        v1::ModelState::Failed => "failed",
    }
}

fn progressing(model: &v1::ModelStatus) -> String {
    match &model.progress {
        Some(progress) if progress.total_bytes > 0 => {
            format!("{} {:.0} %", state(model), progress.done_bytes as f64 / progress.total_bytes as f64 * 100.0)
        }
        _ => state(model).to_owned(),
    }
}

fn progress_object(progress: &v1::PullProgress) -> Value {
    json!({ "file": progress.file, "done_bytes": progress.done_bytes, "total_bytes": progress.total_bytes })
}

fn object(model: &v1::ModelStatus) -> Value {
    json!({
        "name": model.name,
        "source": model.source,
        "state": state(model),
        "problem": model.problem,
        "memory_bytes": model.memory_bytes,
        "running": model.running,
        "progress": model.progress.as_ref().map(progress_object),
        "license": model.license,
    })
}
