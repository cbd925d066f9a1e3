//! `sluice demo --learn`: a gateway that starts with no scorer and no certificate and learns from its own traffic, over
//! several seeds. Requests have right answers; the small model's answers are its own, the simulated large model gives the
//! right ones. Everything goes through the gateway as it serves: shadow runs compare, a scorer is fitted, a certificate is
//! solved, and the share served locally rises while the promise is held against what was shown.

mod own;
mod plot;
mod traffic;

use super::super::simulate::shipped_prices;
use super::super::table::{self, Align};
use super::data_folder;
use crate::app::App;
use crate::domain::{Message, RecordLevel, Role, TenantId};
use crate::evidence::estimate::Interval;
use crate::score::PairScorer;
use crate::settings::{Settings, Target};
use crate::simulate::{Simulator, SimulatorConfig};
use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use traffic::{Known, Pool, SERVED_SHARE, grade};

/// The catalog's name of the bundled model here: no scorer is shipped for it, so that everything is learnt.
const SMALL: &str = "nano-without-scorer";
const LARGE: &str = "openai/gpt-4.1-mini";
const POLICY: &str = "learning";
/// Requests between two looks at what came in.
const LOOK_EVERY: usize = 10;
/// Requests of a point of the curve.
const WINDOW: usize = 50;

/// Arguments of `demo --learn`.
#[derive(Clone, Debug, Args)]
pub struct LearnArguments {
    /// Learn from nothing, over several seeds, and show how the share served locally rises.
    #[arg(long)]
    pub learn: bool,
    /// Seeds: each is a gateway of its own with its own traffic.
    #[arg(long, value_name = "N", default_value_t = 3, requires = "learn")]
    pub seeds: u64,
    /// Requests of each seed.
    #[arg(long, value_name = "N", default_value_t = 400, requires = "learn")]
    pub requests: usize,
    /// Share of the large model's quality to keep.
    #[arg(long, value_name = "SHARE", default_value_t = 0.85, requires = "learn")]
    pub target: f64,
    /// Confidence of the certificate.
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, requires = "learn")]
    pub confidence: f64,
    /// Outcomes before the first scorer is fitted.
    #[arg(long, value_name = "N", default_value_t = 80, requires = "learn")]
    pub first: u64,
    /// Requests with right answers, instead of the demo's own: JSON lines with id, task, prompt, answer, gzipped or not.
    #[arg(long, value_name = "FILE", requires = "learn")]
    pub suite: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long, requires = "learn")]
    pub json: bool,
    /// Draw the curves.
    #[arg(long, value_name = "FILE.svg", requires = "learn")]
    pub svg: Option<PathBuf>,
}

/// One request as it was served.
#[derive(Clone, Copy, Debug)]
struct Served {
    local: bool,
    quality: f64,
}

/// A scorer and threshold that were in force.
struct InForce {
    from: usize,
    scorer: Arc<PairScorer>,
    threshold: Option<f64>,
}

/// What one seed came to.
struct Course {
    seed: u64,
    served: Vec<Served>,
    in_force: Vec<InForce>,
    scorers: u32,
    outcomes: u64,
}

/// A certificate against all that may be asked: exact, no sample.
#[derive(Clone, Copy, Debug)]
struct Truth {
    kept: f64,
    local: f64,
}

/// Runs the demo.
pub fn run(arguments: &LearnArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let pool = Pool::read(&arguments.suite)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if !arguments.json {
        let (served, hard) = pool.sizes();
        writeln!(
            out,
            "{} seeds of {} requests: {:.0} % of {served} the small model serves, the rest of {hard} it does not. The large \
             model is SIMULATED: it gives the right answer.\nEach gateway starts with no scorer and no certificate.\n",
            arguments.seeds,
            arguments.requests,
            SERVED_SHARE * 100.0
        )?;
        out.flush()?;
    }
    let mut courses = Vec::new();
    for seed in 1..=arguments.seeds {
        let course = runtime.block_on(one_seed(arguments, &pool, seed))?;
        if !arguments.json {
            writeln!(out, "seed {seed}: {}", in_words(&course))?;
            out.flush()?;
        }
        courses.push(course);
    }
    let known = pool.known()?;
    let report = Report::of(arguments, &courses, &known);
    if let Some(file) = &arguments.svg {
        std::fs::write(file, plot::svg(&report)).with_context(|| format!("can't write {}", file.display()))?;
    }
    match arguments.json {
        true => writeln!(out, "{}", report.to_json())?,
        false => report.show(out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn in_words(course: &Course) -> String {
    let first = course.in_force.iter().find(|in_force| in_force.threshold.is_some());
    let local = course.served.iter().filter(|served| served.local).count();
    let from = first.map_or("never".to_owned(), |first| format!("from request {}", first.from));
    format!("local {from}; {local} of {} local, {} scorers tested", course.served.len(), course.scorers)
}

/// The folder of policies of a seed: the shipped catalog with the bundled model under another name, and one policy.
fn write_policies(folder: &Path, arguments: &LearnArguments) -> anyhow::Result<()> {
    let catalog = include_str!("../../../../policies/models.toml").replace("\"sluice-nano\"", &format!("\"{SMALL}\""));
    std::fs::write(folder.join("models.toml"), catalog)?;
    let LearnArguments { target, confidence, first, .. } = arguments;
    let policy = format!(
        "name = \"{POLICY}\"\n[models]\nsmall = [\"{SMALL}\"]\nlarge = [\"{LARGE}\"]\n[objective]\ngoal = \"min-cost\"\n\
         quality_target = {target}\nconfidence = {confidence}\n[shadow]\nshare = 1.0\ndaily = \"10 USD\"\ncompare = \"exact\"\n\
         [learn]\nfirst = {first}\nevery = \"1h\"\n"
    );
    Ok(std::fs::write(folder.join("learning.toml"), policy)?)
}

async fn one_seed(arguments: &LearnArguments, pool: &Pool, seed: u64) -> anyhow::Result<Course> {
    let requests = pool.draw(arguments.requests, seed)?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let config = SimulatorConfig { answers: pool.answers(), prices: shipped_prices()?, ..SimulatorConfig::default() };
    let simulator = Simulator::start(config, &tasks, stop.clone()).await?;
    let folder = data_folder()?;
    write_policies(&folder, arguments)?;
    let mut settings = Settings::from(None, HashMap::new(), &|_| None)?;
    settings.listen.set_port(0);
    settings.data_dir = folder.join("data");
    settings.policies_dir = Some(folder.clone());
    settings.default_policy = POLICY.to_owned();
    settings.telemetry.filter = "warn".to_owned();
    settings.records.insert(TenantId::new("local"), RecordLevel::Text);
    settings.targets.insert("openai".to_owned(), Target::at(simulator.base_url()));
    let app = App::start(settings).await.context("the demo's gateway does not start")?;
    let mut client = Client::connect(&app.url(), None, None).await?;
    let mut course = Course { seed, served: Vec::new(), in_force: Vec::new(), scorers: 0, outcomes: 0 };
    for (place, record) in requests.iter().enumerate() {
        course.served.push(serve(&mut client, &record.prompt, &record.answer).await?);
        app.services().gateway.at_rest().await;
        if (place + 1).is_multiple_of(LOOK_EVERY) {
            app.services().gateway.learning().look().await;
            note_what_serves(&app, place + 1, &mut course);
        }
    }
    drop(client);
    app.shutdown().await;
    stop.cancel();
    let _leftover = std::fs::remove_dir_all(&folder);
    Ok(course)
}

async fn serve(client: &mut Client, prompt: &str, right: &str) -> anyhow::Result<Served> {
    let mut ask = sluice_proto::client::ask(prompt);
    ask.limits = Some(v1::Limits { temperature: Some(0.0), ..v1::Limits::default() });
    let response = client.gateway.complete(v1::CompleteRequest { ask: Some(ask) }).await;
    let response = response.with_context(|| format!("asked {prompt:?}"))?.into_inner();
    let parts = response.parts.into_iter().filter_map(|part| match part.kind {
        Some(v1::part::Kind::Text(text)) => Some(text),
        _ => None,
    });
    let text: String = parts.collect();
    let decision = response.finished.and_then(|finished| finished.decision).unwrap_or_default();
    Ok(Served { local: decision.route() == v1::Route::Local, quality: grade(&text, right) })
}

/// Notes a scorer and threshold that came in force.
fn note_what_serves(app: &App, served: usize, course: &mut Course) {
    let policy = app.services().registry.snapshot().policy(None);
    if let Some((policy, scorer)) = policy.as_ref().and_then(|policy| Some((policy, policy.learnt()?))) {
        let threshold = policy.threshold();
        let same = |last: &InForce| last.scorer.version() == scorer.version() && last.threshold == threshold;
        if !course.in_force.last().is_some_and(same) {
            course.in_force.push(InForce { from: served, scorer: Arc::clone(scorer), threshold });
        }
    }
    if let Some(status) = app.services().gateway.learning().status(POLICY) {
        course.scorers = status.starts;
        course.outcomes = status.counts.fit + status.counts.evidence;
    }
}

/// What a scorer and threshold keep of all that may be asked.
fn truth(in_force: &InForce, known: &[Known<'_>]) -> Truth {
    let mut truth = Truth { kept: 0.0, local: 0.0 };
    for known in known {
        let messages = [Message::text(Role::User, known.record.prompt.clone())];
        let score = in_force.scorer.score(&messages).map_or(0.0, |score| score.get());
        let local = in_force.threshold.is_some_and(|threshold| score >= threshold);
        truth.kept += known.weight * if local { known.quality } else { 1.0 };
        truth.local += if local { known.weight } else { 0.0 };
    }
    truth
}

/// A window of requests, over all seeds.
struct Window {
    until: usize,
    /// Share served locally: mean over seeds, and the tenth and the ninetieth percentile of them.
    local: Interval,
    /// Quality of what was shown: mean over seeds with its 95 % interval.
    kept: Interval,
}

struct Report<'a> {
    arguments: &'a LearnArguments,
    courses: &'a [Course],
    windows: Vec<Window>,
    /// Of each seed the certificate that kept least, if there was one, and the last.
    truths: Vec<Option<(Truth, Truth)>>,
    small_alone: f64,
}

impl<'a> Report<'a> {
    fn of(arguments: &'a LearnArguments, courses: &'a [Course], known: &[Known<'_>]) -> Self {
        let windows = (0..arguments.requests / WINDOW).map(|window| {
            let mean = |course: &Course, value: fn(&Served) -> f64| {
                let rows = course.served.iter().skip(window * WINDOW).take(WINDOW);
                rows.map(value).sum::<f64>() / WINDOW as f64
            };
            let shares: Vec<f64> =
                courses.iter().map(|course| mean(course, |row| f64::from(u8::from(row.local)))).collect();
            let kept: Vec<f64> = courses.iter().map(|course| mean(course, |row| row.quality)).collect();
            Window { until: (window + 1) * WINDOW, local: spread(&shares), kept: mean_with_interval(&kept) }
        });
        let truths = courses.iter().map(|course| {
            let certified = course.in_force.iter().filter(|in_force| in_force.threshold.is_some());
            let all: Vec<Truth> = certified.map(|in_force| truth(in_force, known)).collect();
            let worst = all.iter().copied().reduce(|worst, next| if next.kept < worst.kept { next } else { worst })?;
            Some((worst, *all.last()?))
        });
        let small_alone = known.iter().map(|known| known.weight * known.quality).sum();
        Self { arguments, courses, windows: windows.collect(), truths: truths.collect(), small_alone }
    }

    /// Seeds in which some certificate that was ever in force kept less than was promised.
    fn broken(&self) -> usize {
        self.truths.iter().flatten().filter(|(worst, _)| worst.kept < self.arguments.target).count()
    }

    fn kept_overall(&self) -> Interval {
        let mean = |course: &Course| {
            course.served.iter().map(|served| served.quality).sum::<f64>() / course.served.len().max(1) as f64
        };
        mean_with_interval(&self.courses.iter().map(mean).collect::<Vec<_>>())
    }

    fn to_json(&self) -> Value {
        let LearnArguments { seeds, requests, target, confidence, first, suite, .. } = self.arguments;
        let interval = |of: &Interval| json!({ "mean": of.value, "low": of.low, "high": of.high });
        let window = |window: &Window| json!({ "until": window.until, "local_share": interval(&window.local), "kept": interval(&window.kept) });
        let course = |(course, truth): (&Course, &Option<(Truth, Truth)>)| {
            let certified = || course.in_force.iter().filter(|in_force| in_force.threshold.is_some());
            json!({
                "seed": course.seed,
                "outcomes": course.outcomes,
                "scorers": course.scorers,
                "certificates": certified().count(),
                "local_from": certified().next().map(|first| first.from),
                "local": course.served.iter().filter(|served| served.local).count(),
                "true_of_the_worst": truth.map(|(worst, _)| json!({ "kept": worst.kept, "local_share": worst.local })),
                "true_of_the_last": truth.map(|(_, last)| json!({ "kept": last.kept, "local_share": last.local })),
            })
        };
        json!({
            "suite": if suite.is_empty() { "own" } else { "files" },
            "seeds": seeds, "requests": requests, "target": target, "confidence": confidence, "first": first,
            "served_share": SERVED_SHARE,
            "small_alone": self.small_alone,
            "windows": self.windows.iter().map(window).collect::<Vec<_>>(),
            "kept": interval(&self.kept_overall()),
            "seeds_with_a_broken_promise": self.broken(),
            "courses": self.courses.iter().zip(&self.truths).map(course).collect::<Vec<_>>(),
        })
    }

    fn show(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let range = |of: &Interval| format!("{:.1} to {:.1} %", of.low * 100.0, of.high * 100.0);
        let header = [
            ("requests", Align::Right),
            ("served locally", Align::Right),
            ("10 to 90 % of seeds", Align::Right),
            ("quality shown", Align::Right),
            ("95 % interval", Align::Right),
        ];
        let row = |window: &Window| {
            let Window { until, local, kept } = window;
            vec![
                format!("{} to {until}", until + 1 - WINDOW),
                percent(local.value),
                range(local),
                percent(kept.value),
                range(kept),
            ]
        };
        writeln!(out)?;
        table::print(out, &header, &self.windows.iter().map(row).collect::<Vec<_>>())?;
        let LearnArguments { target, confidence, .. } = self.arguments;
        let overall = self.kept_overall();
        let certified = self.truths.iter().flatten().count();
        writeln!(
            out,
            "\npromised     {} of the large model's quality, at {} confidence; the small model alone would keep {}\n\
             shown        {} over all requests ({})\n\
             certificates {certified} of {} seeds got one; against all that may be asked, {} of the seeds ever had one in force \
             that keeps less than promised",
            percent(*target),
            percent(*confidence),
            percent(self.small_alone),
            percent(overall.value),
            range(&overall),
            self.courses.len(),
            self.broken()
        )?;
        if let Some(file) = &self.arguments.svg {
            writeln!(out, "drawn in {}", file.display())?;
        }
        Ok(())
    }
}

/// Mean over seeds, and the tenth and the ninetieth percentile of them.
fn spread(values: &[f64]) -> Interval {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (share * (sorted.len().saturating_sub(1)) as f64).round() as usize;
        sorted.get(place).copied().unwrap_or(0.0)
    };
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    Interval { value: mean, low: at(0.1), high: at(0.9) }
}

/// Mean over seeds with its 95 % interval by the normal approximation.
fn mean_with_interval(values: &[f64]) -> Interval {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let half = 1.96 * (variance / n).sqrt();
    Interval { value: mean, low: mean - half, high: mean + half }
}
