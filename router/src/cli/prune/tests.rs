use super::*;
use clap::Parser as _;
use local_worker::ModelSource;
use std::path::Path;

fn prune(arguments: &[&str]) -> anyhow::Result<String> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: PruneArguments,
    }
    let line = Line::try_parse_from(["prune", "--model", "sluice-nano"].iter().chain(arguments))?;
    let mut said = Vec::new();
    run(&line.arguments, &mut said)?;
    Ok(String::from_utf8(said)?)
}

#[test]
fn the_bundled_model_loses_a_layer_and_tells_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("text"), "Is this spam? You won a prize! Which intent is it: where is my card. ".repeat(20))
        .unwrap();
    let (text, out) = (path("text"), path("small.gguf"));
    let error = prune(&["--layers", "2", "--calibrate", &text, "--out", &out]).unwrap_err().to_string();
    assert!(error.contains("--requantize"), "{error}");
    let error = prune(&["--zeros", "wanda", "--requantize", "--out", &out]).unwrap_err().to_string();
    assert!(error.contains("--calibrate"), "{error}");
    assert!(!Path::new(&out).exists());
    let given = [
        "--layers",
        "2",
        "--neurons",
        "512",
        "--requantize",
        "--calibrate",
        &text,
        "--out",
        &out,
        "--perplexity",
        &text,
    ];
    let told: Value = serde_json::from_str(&prune(&[&given[..], &["--json"]].concat()).unwrap()).unwrap();
    let bundled = model::read(&ModelSource::Bundled).unwrap().0;
    let dropped = told["pruned"]["layers_dropped"].as_array().unwrap().len();
    assert_eq!(dropped + 2, bundled.shape.layers, "{told}");
    assert!(told["pruned"]["weights"].as_u64() < told["pruned"]["of"].as_u64());
    let (network, _) = model::read(&ModelSource::Path(PathBuf::from(&out))).unwrap();
    assert_eq!((network.shape.layers, network.shape.feed_forward), (2, 512));
    prune(&["--these-layers", "0,2", "--requantize", "--out", &out]).unwrap();
    let (network, _) = model::read(&ModelSource::Path(PathBuf::from(&out))).unwrap();
    assert_eq!(network.shape.layers, 2);
    let norm =
        |network: &Network, layer: usize| network.tensor(&format!("blk.{layer}.ffn_norm.weight")).unwrap().to_vec();
    assert_eq!((norm(&network, 0), norm(&network, 1)), (norm(&bundled, 0), norm(&bundled, 2)));
    for layers in ["9", "2,0", "1,1"] {
        let error = prune(&["--these-layers", layers, "--requantize", "--out", &out]).unwrap_err().to_string();
        assert!(error.contains("each once and in their order"), "{error}");
    }
    std::fs::write(path("blank"), " \n").unwrap();
    let error = prune(&["--layers", "2", "--requantize", "--calibrate", &path("blank"), "--out", &out]).unwrap_err();
    assert!(error.to_string().contains("calibration text is too short"), "{error}");
    let said = prune(&["--zeros", "2:4", "--requantize", "--out", &out]).unwrap();
    assert!(said.contains("zero share in layers 0.5") && said.contains("nothing smaller or faster"), "{said}");
}
