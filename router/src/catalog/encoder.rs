//! `[[encoders]]`: what makes vectors of texts. Apart from models, because an encoder writes no answers and no policy can name one.

use super::Model;
use crate::domain::ModelId;
use crate::toml_file::{Problems, Section};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The table inside the binary.
pub const BUNDLED_ENCODER: &str = "sluice-embed-v0";

/// What makes vectors of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoder {
    /// Its name.
    pub id: ModelId,
    /// Its folder, as hubs have it; `None` for the table inside the binary.
    pub path: Option<PathBuf>,
    /// Where this process runs, as demands on residency name it; without it, such demands are not met.
    pub region: Option<String>,
}

impl Encoder {
    /// The table inside the binary, of which the catalog need not speak.
    pub(super) fn bundled() -> Self {
        Self { id: ModelId::new(BUNDLED_ENCODER), path: None, region: None }
    }
}

/// Reads all `[[encoders]]`.
pub(super) fn read(
    root: &mut Section<'_, '_>,
    models: &BTreeMap<ModelId, Model>,
    problems: &mut Problems<'_>,
) -> BTreeMap<ModelId, Encoder> {
    let mut encoders = BTreeMap::new();
    for mut section in root.sections("encoders", problems) {
        let span = section.span();
        let id = section.text("id", problems).map(|(id, _)| ModelId::new(id));
        section.missing("id", "give the encoder a name", problems);
        let bundled = id.as_ref().is_some_and(|id| id.as_str() == BUNDLED_ENCODER);
        let path_span = section.span_of("path");
        let path = section.text("path", problems).map(|(path, _)| PathBuf::from(path));
        if bundled && path.is_some() {
            let message = format!("`{BUNDLED_ENCODER}` is inside the binary");
            problems.add(path_span, &section.path("path"), message, "give your own encoder another name");
        } else if !bundled {
            section.missing(
                "path",
                "name its folder: config.json, model.safetensors, tokenizer.json or vocab.txt",
                problems,
            );
        }
        let region =
            section.text("region", problems).map(|(region, _)| region).filter(|region| !region.trim().is_empty());
        section.finish(problems);
        let Some(id) = id else { continue };
        if models.contains_key(&id) || encoders.contains_key(&id) {
            problems.add(span, "encoders", format!("the name `{id}` is taken already"), "");
        }
        encoders.insert(id.clone(), Encoder { id, path, region });
    }
    encoders
}

#[cfg(test)]
mod tests {
    use crate::catalog::{BUNDLED_ENCODER, Catalog};
    use crate::domain::ModelId;

    fn check(text: &str, expected: Result<&[&str], (usize, &str)>) {
        let found = Catalog::parse("models.toml", text);
        match (found, expected) {
            (Ok(catalog), Ok(names)) => assert_eq!(catalog.encoder_names(), names, "{text}"),
            (Err(problems), Err((line, key))) => {
                let found: Vec<(usize, &str)> = problems.iter().map(|found| (found.line, found.key.as_str())).collect();
                assert_eq!(found, [(line, key)], "{text}");
            }
            (found, expected) => panic!("{text}: {found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn encoders_are_listed_beside_the_bundled_one() {
        check("", Ok(&[BUNDLED_ENCODER]));
        check("[[encoders]]\nid = \"mini\"\npath = \"/m\"\n", Ok(&[BUNDLED_ENCODER, "mini"]));
        check("[[encoders]]\nid = \"sluice-embed-v0\"\nregion = \"eu\"\n", Ok(&[BUNDLED_ENCODER]));
        check("[[encoders]]\nid = \"mini\"\n", Err((1, "encoders[0].path")));
        check("[[encoders]]\npath = \"/m\"\n", Err((1, "encoders[0].id")));
        check("[[encoders]]\nid = \"sluice-embed-v0\"\npath = \"/m\"\n", Err((3, "encoders[0].path")));
        check("[[encoders]]\nid = \"mini\"\npath = \"/m\"\nkind = \"file\"\n", Err((4, "encoders[0].kind")));
        let twice = "[[encoders]]\nid = \"m\"\npath = \"/m\"\n[[encoders]]\nid = \"m\"\npath = \"/n\"\n";
        check(twice, Err((4, "encoders")));
        let catalog =
            Catalog::parse("models.toml", "[[encoders]]\nid = \"sluice-embed-v0\"\nregion = \"eu\"\n").unwrap();
        assert_eq!(catalog.encoder(&ModelId::new(BUNDLED_ENCODER)).unwrap().region.as_deref(), Some("eu"));
        assert!(catalog.encoder(&ModelId::new("other")).is_none());
    }
}
