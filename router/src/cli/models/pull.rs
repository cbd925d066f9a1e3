//! `sluice models pull hf:…`: into the cache folder, without a gateway.

use super::PullArguments;
use super::bar::Bar;
use crate::cli::table::bytes;
use crate::settings::Settings;
use anyhow::Context as _;
use local_worker::model::hub::{Hub, HubReference, Progress};
use std::io::Write;

/// Fetches a model where settings say that models are kept.
pub async fn into_cache(arguments: &PullArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let reference: HubReference = arguments.model.parse()?;
    let settings = Settings::load(arguments.config.as_deref()).context("the settings can't be used")?;
    let hub = Hub::new(settings.hub.config(&settings.data_dir))?;
    let bar = Bar::new();
    let tell = |progress: Progress| bar.tell(&progress.file, progress.done_bytes, progress.total_bytes);
    // Ctrl-C leaves what came; the next pull goes on from there.
    let pulled = hub.pull(&reference, &tell).await;
    bar.clear();
    let pulled = pulled?;
    let size = bytes_of(&pulled.path);
    if arguments.json {
        let told = serde_json::json!({
            "source": reference.to_string(),
            "path": pulled.path,
            "commit": pulled.commit,
            "license": pulled.license,
            "bytes": size,
        });
        writeln!(out, "{told}")?;
        return Ok(());
    }
    writeln!(out, "{reference} is here: {}", bytes(size))?;
    writeln!(out, "  path    {}", pulled.path.display())?;
    writeln!(out, "  commit  {}", pulled.commit)?;
    writeln!(out, "  licence {}", pulled.license.as_deref().unwrap_or("not told"))?;
    Ok(())
}

fn bytes_of(path: &std::path::Path) -> u64 {
    let size = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |known| known.len());
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| size(&entry.path())).sum(),
        Err(_) => size(path),
    }
}
