//! A local model by what a person calls it: a path, or a name of the catalog.

use crate::catalog::{Catalog, Place};
use crate::settings::Settings;
use anyhow::Context as _;
use local_worker::ModelSource;
use local_worker::model::hub::Hub;
use std::path::{Path, PathBuf};

/// Where the files of a model are.
///
/// # Errors
/// It is neither a path that exists nor a model of the catalog that runs in this process, or its files are not here.
pub fn find(name: &str, catalog: Option<&Path>) -> anyhow::Result<ModelSource> {
    let path = PathBuf::from(name);
    if path.exists() {
        return Ok(ModelSource::Path(path));
    }
    let (file, text) = match catalog {
        Some(file) => (file.display().to_string(), super::read(file)?),
        None => ("models.toml".to_owned(), include_str!("../../../../policies/models.toml").to_owned()),
    };
    let catalog = Catalog::parse(&file, &text)
        .map_err(|problems| anyhow::anyhow!(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    let found = catalog.models().find(|model| model.id.as_str() == name);
    match found.map(|model| &model.place) {
        Some(Place::Bundled) => Ok(ModelSource::Bundled),
        Some(Place::File(path)) => Ok(ModelSource::Path(path.clone())),
        Some(Place::Hub(reference)) => {
            let settings = Settings::load(None).context("the settings can't be used")?;
            let hub = Hub::new(settings.hub.config(&settings.data_dir))?;
            let pulled = hub.cached(reference);
            let pulled = pulled.with_context(|| format!("{name} is not here: `sluice models pull {reference}`"))?;
            Ok(ModelSource::Path(pulled.path))
        }
        Some(Place::Remote { target, .. }) => {
            anyhow::bail!("{name} runs at {target}; only models of this process can be measured")
        }
        None => {
            let local = |place: &Place| !matches!(place, Place::Remote { .. });
            let names: Vec<&str> =
                catalog.models().filter(|model| local(&model.place)).map(|model| model.id.as_str()).collect();
            anyhow::bail!("{name} is neither a file or folder nor a local model of {file} ({})", names.join(", "))
        }
    }
}
