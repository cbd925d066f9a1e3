//! A gateway with a simulated large model behind it, in this process.

use router::app::App;
use router::cli::simulate::shipped_prices;
use router::settings::{Settings, Target};
use router::simulate::{Simulator, SimulatorConfig};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::collections::HashMap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub struct House {
    pub app: App,
    pub simulator: Simulator,
    pub client: Client,
    folder: tempfile::TempDir,
    stop: CancellationToken,
}

impl House {
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let stop = CancellationToken::new();
        let config = SimulatorConfig { prices: shipped_prices()?, ..SimulatorConfig::default() };
        let simulator = Simulator::start(config, &TaskTracker::new(), stop.clone()).await?;
        let mut settings = Settings::from(None, HashMap::new(), &|_| None)?;
        settings.listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        settings.data_dir = folder.path().join("data");
        settings.telemetry.filter = "error".to_owned();
        settings.default_policy = "quality".to_owned();
        settings.targets.insert("openai".to_owned(), Target::at(simulator.base_url()));
        let app = App::start(settings).await?;
        let client = Client::connect(&app.url(), None, None).await?;
        Ok(Self { app, simulator, client, folder, stop })
    }

    pub async fn close(self) {
        drop(self.client);
        self.app.shutdown().await;
        self.stop.cancel();
        drop(self.folder);
    }
}

/// An ask that must be served remotely, with a short answer.
pub fn remote(prompt: &str, temperature: f32) -> v1::Ask {
    let mut ask = sluice_proto::client::ask(prompt);
    ask.placement = v1::Placement::RemoteOnly.into();
    ask.limits = Some(v1::Limits { temperature: Some(temperature), max_tokens: Some(16), ..v1::Limits::default() });
    ask
}
