//! The only place that names implementations: builds the gateway from settings, runs it, drains it.

use crate::backend::remote::{RemoteBackend, RemoteConfig};
use crate::backend::resilience::RetryPolicy;
use crate::backend::{Backend, Backends};
use crate::budget::allowance::Allowances;
use crate::budget::{BudgetLimits, Budgets};
use crate::cache::ExactCache;
use crate::catalog::Place;
use crate::domain::{ModelId, TenantId};
use crate::edge::auth::Keys;
use crate::edge::grpc::Services;
use crate::edge::{dashboard, http};
use crate::encoders::Encoders;
use crate::evidence::drift::FEATURES;
use crate::gateway::{Gateway, Parts};
use crate::learn::{BreachOf, Live, LiveReport, Teacher, TeacherParts};
use crate::ledger::{Ledger, LedgerOptions, Recovery};
use crate::models::{LoadWhen, ModelState, Models, ModelsConfig, ModelsError};
use crate::policy::{Policy, Registry, Snapshot};
use crate::score::{PairScorer, Scorers};
use crate::settings::{Settings, TlsFiles};
use crate::telemetry::{Metrics, Telemetry};
use anyhow::Context as _;
use local_worker::model::hub::Hub;
use local_worker::{Health, Worker, WorkerConfig};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where live checks keep their state, in the data folder.
const LIVE_STATE: &str = "live.json";
/// How often gauges are brought up to date.
const GAUGES_EVERY: Duration = Duration::from_secs(2);
/// How long exporters may take to send what is left.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// A gateway that listens.
pub struct App {
    address: SocketAddr,
    tls: bool,
    services: Services,
    models: Arc<Models>,
    recovery: Recovery,
    telemetry: Arc<Telemetry>,
    grace: Duration,
    /// Fired: no new request is taken.
    stopping: CancellationToken,
    /// Fired last: the ledger's writer flushes.
    closing: CancellationToken,
    requests: TaskTracker,
    background: TaskTracker,
}

impl App {
    /// Builds everything and starts to listen. Must run inside a runtime.
    ///
    /// # Errors
    /// Anything that keeps it from serving, by name: settings, policies, models, ledger, address.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let telemetry = Arc::new(Telemetry::start(&settings.telemetry)?);
        let (stopping, closing) = (CancellationToken::new(), CancellationToken::new());
        let (requests, background) = (TaskTracker::new(), TaskTracker::new());
        let keys = Arc::new(Keys::load(settings.keys_file.clone())?);
        let tls = settings.tls.as_ref().map(acceptor).transpose()?;
        let scorers = Arc::new(scorers(&settings)?);
        let registry = Registry::load(settings.policies_dir.clone(), &settings.default_policy, Arc::clone(&scorers));
        let registry = Arc::new(registry.context("policies can't be used")?);
        // Before anything slow: an address that is taken should be said at once.
        let listener = TcpListener::bind(settings.listen).await;
        let listener =
            listener.with_context(|| format!("can't listen on {}; is another process there?", settings.listen))?;
        let address = listener.local_addr()?;
        let options = LedgerOptions { sync_each: settings.sync_each, ..LedgerOptions::default() };
        let opened = Ledger::open(&settings.data_dir, options, &background, closing.clone()).await;
        let (ledger, recovery) = opened.context("the ledger can't be opened")?;
        let budgets = Arc::new(Budgets::default());
        for (tenant, at, amount) in &recovery.spent {
            budgets.add_spent(tenant, *at, *amount);
        }
        let shadow_budgets = Arc::new(Budgets::default());
        for (policy, at, amount) in &recovery.shadow_spent {
            shadow_budgets.add_spent(&TenantId::new(policy.as_str()), *at, *amount);
        }
        let live = Arc::new(Live::open(Some(&settings.data_dir.join(LIVE_STATE)))?);
        let snapshot = registry.snapshot();
        let allowances = allowances(&snapshot, &ledger).await?;
        let models = models(&settings, &background, &stopping)?;
        let backends = Arc::new(Backends::default());
        take_over(&settings, &snapshot, &models, &backends, None)?;
        if models.load_when() == LoadWhen::Start {
            load_first(&models, &background).await?;
        }
        let metrics = telemetry.metrics();
        let (learning, teacher) = Teacher::open(TeacherParts {
            data: &settings.data_dir,
            registry: Arc::clone(&registry),
            ledger: Arc::clone(&ledger),
            live: Arc::clone(&live),
            metrics: metrics.clone(),
        });
        let max_attempts = settings.targets.values().map(|target| target.max_retries).max().unwrap_or(2) + 1;
        let gateway = Gateway::new(Parts {
            registry: Arc::clone(&registry),
            backends: Arc::clone(&backends),
            encoders: Encoders::new(Arc::clone(&models)),
            scorers,
            cache: ExactCache::new(settings.cache_bytes),
            budgets: Arc::clone(&budgets),
            shadow_budgets,
            allowances,
            tenant_limits: settings.tenants.clone(),
            records: settings.records.clone(),
            residencies: settings.residencies.clone(),
            default_limits: BudgetLimits::default(),
            ledger: Arc::clone(&ledger),
            live,
            learning,
            metrics: metrics.clone(),
            retry: RetryPolicy { max_attempts, ..RetryPolicy::default() },
            max_concurrent: settings.max_concurrent,
            tracker: requests.clone(),
            stopping: stopping.clone(),
        });
        let max_prompt_bytes = settings.max_prompt_bytes;
        let services = Services {
            gateway,
            ledger,
            registry: Arc::clone(&registry),
            budgets,
            keys: Arc::clone(&keys),
            models: Arc::clone(&models),
            max_prompt_bytes,
        };
        let render = Arc::clone(&telemetry);
        let plain =
            http::routes(Arc::clone(&keys), Arc::new(move || render.render()), dashboard::routes(services.clone()));
        let routes = http::with_grpc(services.routes(stopping.clone(), &background).await?, plain);
        background.spawn(teacher.run(stopping.clone()));
        background.spawn(Arc::clone(&registry).watch(settings.reload_interval, stopping.clone()));
        background.spawn(watch_keys(keys, settings.reload_interval, stopping.clone()));
        background.spawn(watch_gauges(services.clone(), metrics, stopping.clone()));
        let follow = Follow { settings: settings.clone(), registry, models: Arc::clone(&models), backends, snapshot };
        background.spawn(follow.run(background.clone(), stopping.clone()));
        let stop = stopping.clone().cancelled_owned();
        let serving = http::serve(listener, routes, tls.clone(), requests.clone(), stop, settings.shutdown_grace);
        background.spawn(serving);
        Ok(Self {
            address,
            tls: tls.is_some(),
            services,
            models,
            recovery,
            telemetry,
            grace: settings.shutdown_grace,
            stopping,
            closing,
            requests,
            background,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as a URL.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// What was found and mended at the start.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// The models that are loaded in this process.
    pub fn workers(&self) -> Vec<(ModelId, Worker)> {
        self.models.loaded()
    }

    /// All models that may run in this process.
    pub fn models(&self) -> &Arc<Models> {
        &self.models
    }

    /// What the services are built of: for tests and benches in this process.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Stops taking requests, lets those under way finish, flushes the ledger, joins the model threads.
    pub async fn shutdown(self) {
        self.stopping.cancel();
        self.requests.close();
        if tokio::time::timeout(self.grace, self.requests.wait()).await.is_err() {
            tracing::warn!("requests were still under way at the end of `shutdown_grace`; the next start books them");
        }
        self.services.gateway.live().save();
        self.closing.cancel();
        self.background.close();
        if tokio::time::timeout(self.grace.max(Duration::from_secs(5)), self.background.wait()).await.is_err() {
            tracing::error!("the ledger was not flushed in time; the journal keeps the rest for the next start");
        }
        let (models, grace) = (self.models, self.grace);
        let joined = tokio::task::spawn_blocking(move || models.shutdown(grace)).await;
        if !joined.unwrap_or(false) {
            tracing::warn!("a model thread did not stop in time");
        }
        if let Some(telemetry) = Arc::into_inner(self.telemetry) {
            telemetry.shutdown(LAST_EXPORT).await;
        }
    }
}

/// What policies with a ceiling on the mean cost have earned and spent in their current windows.
async fn allowances(snapshot: &Snapshot, ledger: &Ledger) -> anyhow::Result<Arc<Allowances>> {
    let allowances = Arc::new(Allowances::default());
    for policy in snapshot.policies() {
        let Some(allowed) = policy.allowed() else { continue };
        let (name, start) = (&policy.reference.name, allowed.window_start(jiff::Timestamp::now()));
        let (requests, spent) = ledger.spent_under(name, start).await.context("the ledger can't be read")?;
        allowances.restore(name, &allowed, requests, spent);
    }
    Ok(allowances)
}

fn scorers(settings: &Settings) -> anyhow::Result<Scorers> {
    let scorer = match &settings.scorer_file {
        Some(file) => Some(PairScorer::read(file)?),
        None => PairScorer::bundled()?,
    };
    Ok(Scorers::new(scorer))
}

/// The models of this process, none of them loaded yet.
fn models(settings: &Settings, tasks: &TaskTracker, stop: &CancellationToken) -> anyhow::Result<Arc<Models>> {
    let worker = WorkerConfig {
        queue_capacity: settings.local_queue,
        max_sequences: settings.local_sequences,
        cache_bytes: settings.local_cache_bytes,
        cache_format: settings.local_cache_format,
        threads: settings.local_threads,
        ..WorkerConfig::default()
    };
    let config = ModelsConfig {
        memory_bytes: settings.local_memory_bytes,
        load_when: settings.local_load,
        wait: settings.local_wait,
        worker,
    };
    let hub = Hub::new(settings.hub.config(&settings.data_dir)).context("the hub can't be used")?;
    Ok(Models::new(config, hub, tasks.clone(), stop.clone()))
}

/// Loads all models that policies name. What has to come from a hub first is fetched while the gateway serves already; what
/// has no room waits for somebody to make some.
async fn load_first(models: &Arc<Models>, tasks: &TaskTracker) -> anyhow::Result<()> {
    for id in models.wanting() {
        let state = models.report(&id)?.state;
        if state == ModelState::Downloadable {
            tasks.spawn(fetch_and_load(Arc::clone(models), id));
            continue;
        }
        match models.load(&id).await {
            Err(error @ (ModelsError::NoRoom { .. } | ModelsError::TooLarge { .. })) => {
                tracing::warn!(%error, "a model stays out")
            }
            outcome => outcome?,
        }
    }
    Ok(())
}

async fn fetch_and_load(models: Arc<Models>, id: ModelId) {
    if let Err(error) = models.fetch_and_load(&id).await {
        tracing::error!(model = %id, %error, "a model that policies name is not loaded");
    }
}

/// Puts the models of a catalog in force: local ones by the model manager, remote ones as backends of their own. What is as
/// `before` stays as it is, breakers included. Returns the local models to swap. A remote model without a target is left
/// out: decisions say so.
fn take_over(
    settings: &Settings,
    snapshot: &Snapshot,
    models: &Arc<Models>,
    backends: &Backends,
    before: Option<&Snapshot>,
) -> anyhow::Result<Vec<ModelId>> {
    let catalog = snapshot.catalog();
    let used: BTreeSet<ModelId> = snapshot.policies().flat_map(|policy| policy.models().cloned()).collect();
    let changed = models.apply(catalog, &used);
    let old = backends.all();
    let mut all: HashMap<ModelId, Arc<dyn Backend>> = HashMap::new();
    for model in used.iter().filter_map(|id| catalog.get(id)) {
        let Place::Remote { target, upstream } = &model.place else {
            all.extend(models.backend(&model.id).map(|backend| (model.id.clone(), backend)));
            continue;
        };
        let same =
            before.and_then(|before| before.catalog().get(&model.id)).is_some_and(|old| old.place == model.place);
        if let Some(kept) = old.get(&model.id).filter(|_| same) {
            all.insert(model.id.clone(), Arc::clone(kept));
            continue;
        }
        let Some(found) = settings.targets.get(target) else {
            tracing::warn!(model = %model.id, "no target `{target}` in the settings: the model can't be called");
            continue;
        };
        let mut config = RemoteConfig::new(model.id.clone(), upstream.clone(), found.base_url.clone());
        config.key = found.key.clone();
        config.stream = found.stream;
        config.timeouts = found.timeouts;
        let backend = RemoteBackend::new(config).with_context(|| format!("target `{target}`"))?;
        all.insert(model.id.clone(), Arc::new(backend));
    }
    backends.replace(all);
    Ok(changed)
}

/// Follows the catalog: when new policies are in force, models are swapped, loaded and let go.
struct Follow {
    settings: Settings,
    registry: Arc<Registry>,
    models: Arc<Models>,
    backends: Arc<Backends>,
    snapshot: Arc<Snapshot>,
}

impl Follow {
    async fn run(mut self, tasks: TaskTracker, stop: CancellationToken) {
        // A look is a comparison of pointers.
        let interval = self.settings.reload_interval.min(Duration::from_secs(1));
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            let snapshot = self.registry.snapshot();
            if Arc::ptr_eq(&snapshot, &self.snapshot) {
                continue;
            }
            let taken = take_over(&self.settings, &snapshot, &self.models, &self.backends, Some(&self.snapshot));
            self.snapshot = snapshot;
            let mut to_load = match taken {
                Ok(changed) => changed,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "a model of the new catalog can't be used");
                    continue;
                }
            };
            if self.models.load_when() == LoadWhen::Start {
                to_load.extend(self.models.wanting());
            }
            for id in to_load {
                tasks.spawn(fetch_and_load(Arc::clone(&self.models), id));
            }
        }
    }
}

fn acceptor(files: &TlsFiles) -> anyhow::Result<TlsAcceptor> {
    let named = |path: &std::path::Path| format!("tls: {}", path.display());
    let chain = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.with_context(|| named(&files.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).with_context(|| named(&files.key))?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let mut config =
        config.with_context(|| format!("tls: {} and {}", files.certificate.display(), files.key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn watch_keys(keys: Arc<Keys>, interval: Duration, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        match keys.reload() {
            Ok(true) => tracing::info!("new keys are in force"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the keys file has problems; the old keys stay in force"),
        }
    }
}

async fn watch_gauges(services: Services, metrics: Metrics, stop: CancellationToken) {
    loop {
        metrics.ledger_backlog(services.ledger.backlog_bytes());
        for (id, worker) in services.models.loaded() {
            let load = worker.load();
            let up = worker.health() == Health::Ready;
            metrics.local_model(id.as_str(), up, load.waiting as u64, load.running as u64);
        }
        for (id, up) in services.gateway.remote_availability() {
            metrics.remote_model(id.as_str(), up);
        }
        metrics.policies(services.registry.failure().is_some());
        for policy in services.registry.snapshot().policies() {
            let name = &policy.reference.name;
            metrics.policy_certified(name, policy.threshold().is_some());
            show_live(services.gateway.live(), policy, &metrics);
            for (rule, restricting, other) in policy.rule_errors() {
                metrics.rule_errors(name, rule, restricting + other);
            }
        }
        for tenant in services.budgets.tenants() {
            for (window, share) in services.gateway.budget_use(&tenant) {
                metrics.budget_used(tenant.as_str(), window, share);
            }
        }
        services.gateway.live().save();
        if stop.run_until_cancelled(tokio::time::sleep(GAUGES_EVERY)).await.is_none() {
            return;
        }
    }
}

/// The live checks of a policy as gauges; of several pairs the one that is worst off.
fn show_live(live: &Live, policy: &Policy, metrics: &Metrics) {
    let Some((promised, _)) = Live::promise(policy) else { return };
    let reports = live.report(policy);
    let name = &policy.reference.name;
    metrics.live_quality(name, "promised", promised);
    metrics.live_graded(name, reports.iter().map(|report| report.graded).sum());
    let worst = reports.iter().filter_map(|report| report.kept).reduce(|a, b| if b.low < a.low { b } else { a });
    if let Some(kept) = worst {
        for (end, value) in [("kept", kept.value), ("low", kept.low), ("high", kept.high)] {
            metrics.live_quality(name, end, value);
        }
    }
    let errors = reports.iter().filter_map(|report| Some(report.calibration?.0));
    if let Some(error) = errors.reduce(f64::max) {
        metrics.live_calibration(name, error);
    }
    for feature in FEATURES {
        let of = |report: &LiveReport| report.shifts.iter().find(|(name, _)| name == feature).map(|(_, shift)| *shift);
        metrics.live_drift(name, feature, reports.iter().filter_map(of).fold(0.0, f64::max));
    }
    for of in BreachOf::ALL {
        let breached = reports.iter().any(|report| report.breaches.iter().any(|(breach, _)| *breach == of));
        metrics.live_breach(name, of.as_str(), breached);
    }
}
