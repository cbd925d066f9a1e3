use super::super::network::tests::tiny;
use super::*;

fn training() -> Training {
    Training {
        tokens: 600,
        fall: None,
        embedding_rate: 1.0,
        batch_tokens: 20,
        accumulate: 2,
        peak_rate: 1e-2,
        warm_up: 100,
        floor: 0.01,
        weight_decay: 0.01,
        clip: 1.0,
        log_steps: 2,
        checkpoint_steps: 5,
        evaluate_steps: 4,
        threads: 2,
        precision: crate::kernels::Precision::F32,
    }
}

fn samples() -> Vec<Sample> {
    let sample = |first: u32| {
        let tokens: Vec<u32> = (0..5 + first % 5).map(|index| (first * 7 + index * first) % 32).collect();
        Sample { weights: vec![1.0; tokens.len() - 1], tokens, ..Sample::default() }
    };
    (1..14).map(sample).collect()
}

fn go(folder: &Path, training: &Training, report: &mut dyn FnMut(Event)) -> Result<Network, TrainError> {
    let samples = samples();
    let run = Run {
        folder,
        name: "tiny",
        training,
        aim: Aim::default(),
        seed: 3,
        samples: &samples,
        dev: &samples[..3],
        teacher: None,
    };
    train(&run, || Ok(Network::random(tiny(), 1)), &tiny(), report)
}

/// The log without what the clock says.
fn log(folder: &Path) -> Vec<String> {
    let lines = Log::new(folder).lines().unwrap();
    let timeless = |mut line: serde_json::Value| {
        line.as_object_mut().unwrap().remove("seconds");
        line.to_string()
    };
    lines.into_iter().map(timeless).collect()
}

#[test]
fn a_killed_run_goes_on_as_if_it_had_not_been() {
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = go(whole.path(), &training(), &mut |_| {}).unwrap();
    // Before the first checkpoint, between two, and in the middle of a line.
    for kill in [3, 8, 12] {
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            go(broken.path(), &training(), &mut |event| {
                if let Event::Step(progress) = event {
                    assert!(progress.step < kill, "killed");
                }
            })
        }));
        assert!(stopped.is_err(), "killed at {kill}");
        let mut file = std::fs::OpenOptions::new().append(true).open(broken.path().join("log.jsonl")).unwrap();
        file.write_all(b"{\"step\": 13, \"lo").unwrap();
    }
    let mut resumed = Vec::new();
    let network = go(broken.path(), &training(), &mut |event| {
        if let Event::Resumed(step) = event {
            resumed.push(step);
        }
    });
    assert_eq!(resumed, [10]);
    assert_eq!(network.unwrap().weights, expected.weights);
    assert_eq!(log(broken.path()), log(whole.path()));
    assert!(log(whole.path()).len() > 8, "{:?}", log(whole.path()));
    let done = go(broken.path(), &training(), &mut |event| assert!(matches!(event, Event::Resumed(_)))).unwrap();
    assert_eq!(done.weights, expected.weights, "a finished run has nothing to do");
    assert!(std::fs::read_to_string(broken.path().join("loss.svg")).unwrap().contains("polyline"));
}

#[test]
fn a_loss_that_is_no_number_stops_at_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let wild = Training { peak_rate: 1e20, clip: 1e30, warm_up: 1_000_000_000, checkpoint_steps: 1, ..training() };
    let error = go(folder.path(), &wild, &mut |_| {}).err().unwrap();
    let TrainError::Diverged { step, .. } = &error else { panic!("{error}") };
    let kept = Checkpoint::load(folder.path(), &tiny()).unwrap();
    let text = error.to_string();
    match kept {
        Some(kept) => {
            assert_eq!(kept.counters.step, step - 1);
            assert!(
                text.contains(&format!("checkpoint is that of step {} in {}", step - 1, folder.path().display())),
                "{text}"
            );
            assert!(kept.network.weights.iter().all(|weight| weight.is_finite()));
        }
        None => assert!(text.contains("there is no checkpoint yet"), "{text}"),
    }
}

#[test]
fn every_epoch_sees_every_record_once() {
    let samples = samples();
    let mut order = Order::new(&samples, 5);
    let mut counters = Counters::default();
    let mut epochs = Vec::new();
    for epoch in 0..3 {
        let mut seen = Vec::new();
        while seen.len() < samples.len() {
            seen.extend(order.next(&mut counters, 20).into_iter().map(|sample| sample.tokens.clone()));
        }
        epochs.push(seen.clone());
        seen.sort_unstable();
        let mut all: Vec<Vec<u32>> = samples.iter().map(|sample| sample.tokens.clone()).collect();
        all.sort_unstable();
        assert_eq!((seen, counters.epoch), (all, epoch));
    }
    assert_ne!(epochs[0], epochs[1]);
}

#[test]
fn nothing_to_learn_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let training = training();
    let run = Run {
        folder: folder.path(),
        name: "tiny",
        training: &training,
        aim: Aim::default(),
        seed: 3,
        samples: &[],
        dev: &[],
        teacher: None,
    };
    let error = train(&run, || Ok(Network::random(tiny(), 1)), &tiny(), &mut |_| {}).err().unwrap();
    assert!(matches!(error, TrainError::NothingToDo(_)), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
