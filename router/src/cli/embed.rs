//! `sluice embed`: vectors of texts from a running gateway; of several, how near they are to the first.

use super::ask::prompt_text;
use super::connection::{Connection, describe};
use super::table::{self, Align};
use clap::Args;
use local_worker::embed::similarity;
use sluice_proto::v1;
use std::io::Write;
use std::process::ExitCode;

/// Characters of a text that the table shows.
const SHOWN: usize = 60;

/// Arguments of `embed`.
#[derive(Debug, Args)]
pub struct EmbedArguments {
    /// The texts; `-` reads them from standard input, one a line.
    #[arg(required = true)]
    pub texts: Vec<String>,
    /// An encoder of the catalog; the table inside the gateway's binary if absent.
    #[arg(long, default_value = "")]
    pub model: String,
    /// So many numbers a vector, the leading ones.
    #[arg(long, allow_negative_numbers = true)]
    pub dimensions: Option<i32>,
    /// Cut texts that are longer than the encoder reads.
    #[arg(long)]
    pub truncate: bool,
    /// Print one JSON object a text: text, tokens, vector.
    #[arg(long)]
    pub json: bool,
    /// Where the gateway is.
    #[command(flatten)]
    pub connection: Connection,
}

/// Runs `embed`.
pub fn run(arguments: EmbedArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut texts = Vec::new();
    for text in &arguments.texts {
        match text.as_str() {
            "-" => texts.extend(prompt_text(text.clone())?.lines().map(str::to_owned)),
            text => texts.push(text.to_owned()),
        }
    }
    let request = v1::EmbedRequest {
        model: arguments.model.clone(),
        dimensions: arguments.dimensions,
        truncate: arguments.truncate,
        ..sluice_proto::client::embed(texts.iter())
    };
    let told = super::client_runtime()?.block_on(async {
        let mut client = arguments.connection.open().await?;
        let told = client.gateway.embed(request).await.map_err(|status| describe(&status))?;
        Ok::<_, anyhow::Error>(told.into_inner())
    })?;
    if arguments.json {
        for (text, vector) in texts.iter().zip(&told.vectors) {
            let line = serde_json::json!({ "text": text, "tokens": vector.tokens, "cut": vector.cut, "vector": vector.values });
            writeln!(out, "{line}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let first = told.vectors.first().map(|vector| vector.values.as_slice()).unwrap_or_default();
    let row = |(text, vector): (&String, &v1::TextVector)| {
        let cosine = format!("{:.3}", similarity(first, &vector.values));
        vec![text.chars().take(SHOWN).collect(), vector.tokens.to_string(), cosine]
    };
    let rows: Vec<Vec<String>> = texts.iter().zip(&told.vectors).map(row).collect();
    let header = [("text", Align::Left), ("tokens", Align::Right), ("cosine with the first", Align::Right)];
    table::print(out, &header, &rows)?;
    writeln!(out, "{} dimensions by {} {}", told.dimensions, told.model, told.version)?;
    Ok(ExitCode::SUCCESS)
}
