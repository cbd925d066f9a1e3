//! `sluice-bench`: what the gateway adds, measured side by side in one run, as medians and ratios of alternating rounds.
//!
//! `sluice-bench [PATH_TO_SLUICE]`; with the path of a release binary it also measures start-up and memory. Gateway, simulated
//! large model and clients share one process and its runtime, so that all of them share the machine alike.

mod decision;
mod echo;
mod house;
mod remote;
mod startup;

fn main() -> anyhow::Result<()> {
    let _already_installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        println!("load average at the start: {}\n", load.trim());
        let house = house::House::start().await?;
        decision::run(&house)?;
        echo::run(&house).await?;
        remote::run(&house).await?;
        house.close().await;
        if let Some(binary) = std::env::args().nth(1) {
            startup::run(&binary)?;
        }
        Ok(())
    })
}

/// The value below which the share `quantile` of `values` lies.
fn quantile(values: &mut [f64], quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * quantile).round() as usize).copied().unwrap_or(f64::NAN)
}

/// The median.
fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}
