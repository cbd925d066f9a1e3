//! Start to READY and resident memory of `sluice serve` with the bundled model.

use crate::median;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

const RUNS: usize = 7;

pub fn run(binary: &str) -> anyhow::Result<()> {
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let folder = tempfile::tempdir()?;
        let clock = Instant::now();
        let mut child = Command::new(binary)
            .args(["serve"])
            .env_clear()
            .env("SLUICE_LISTEN", "127.0.0.1:0")
            .env("SLUICE_DATA_DIR", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let Some(output) = child.stdout.take() else { anyhow::bail!("no output") };
        let ready = BufReader::new(output).lines().map_while(Result::ok).any(|line| line.starts_with("READY"));
        times.push(clock.elapsed().as_secs_f64() * 1e3);
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        child.kill()?;
        child.wait()?;
        anyhow::ensure!(ready, "{binary} did not get ready");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        memory.push(resident.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0);
    }
    let bytes = std::fs::metadata(binary)?.len() as f64 / f64::from(1 << 20);
    println!("## `sluice serve` with the bundled model, {RUNS} runs\n");
    println!("| start to READY, median ms | resident memory at READY, median MiB | binary, MiB |");
    println!("| ---: | ---: | ---: |");
    println!("| {:.0} | {:.1} | {bytes:.1} |", median(&mut times), median(&mut memory));
    Ok(())
}
