//! Several candidates, ceilings, residency and conversations that stay remote.

use super::*;
use crate::domain::{NanoUsd, Predicted};
use crate::evidence::spending::{SPENDING_SCHEMA, SpendingCertificate};
use std::time::Duration;

const CATALOG: &str = r#"
[[models]]
id = "tiny"
kind = "file"
path = "tiny.gguf"
context = 512
max_output = 64
default_output = 64
region = "eu"
[[models]]
id = "small"
kind = "file"
path = "small.gguf"
context = 512
max_output = 64
default_output = 64
[[models]]
id = "dear"
kind = "remote"
target = "a"
upstream = "dear"
context = 100000
max_output = 1000
default_output = 1000
region = "us"
price = { input = "10", cached_input = "10", output = "10", date = "2026-01-01", source = "test" }
[[models]]
id = "fair"
kind = "remote"
target = "a"
upstream = "fair"
context = 100000
max_output = 1000
default_output = 1000
region = "eu"
price = { input = "1", cached_input = "1", output = "1", date = "2026-01-01", source = "test" }
"#;

fn policy(objective: &str, rest: &str) -> Result<Policy, Vec<Problem>> {
    let catalog = Catalog::parse("models.toml", CATALOG).unwrap();
    let text = format!(
        "name = \"p\"\n{rest}\n[models]\nsmall = [\"tiny\", \"small\"]\nlarge = [\"dear\", \"fair\"]\n[objective]\n{objective}\n"
    );
    Policy::parse("p.toml", &text, &catalog)
}

const BY_HAND: &str = "goal = \"fixed-threshold\"\nthreshold = 0.5";

/// What is known of the four models: scores of the small ones, seconds of all, nano-USD of the large ones' worst cases.
fn known(scores: [Option<f64>; 2], seconds: [Option<f64>; 4], worst: [i64; 2]) -> Facts {
    let names = ["tiny", "small", "dear", "fair"];
    let regions = [Some("eu"), None, Some("us"), Some("eu")];
    let candidate = |index: usize| {
        let time = seconds[index].map(Duration::from_secs_f64);
        let route = if index < 2 { Route::Local } else { Route::Remote };
        Candidate {
            score: scores.get(index).copied().flatten().map(|score| Score::new(score).unwrap()),
            predicted: time.map(|time| Predicted { first_byte: time / 2, total: time }),
            worst_cost: NanoUsd::new(if index < 2 { 0 } else { worst[index - 2] }),
            region: regions[index].map(str::to_owned),
            ..Candidate::new(ModelId::new(names[index]), route)
        }
    };
    Facts { candidates: (0..4).map(candidate).collect(), ..Facts::default() }
}

const NO_TIMES: [Option<f64>; 4] = [None; 4];

fn decide(policy: &Policy, facts: &Facts, request: &Request) -> Result<(String, &'static str), Refusal> {
    let decision = policy.decide(facts, &policy.constrain(request)?)?;
    Ok((decision.model.to_string(), decision.reason.code.as_str()))
}

fn chosen(policy: &Policy, facts: &Facts) -> (String, &'static str) {
    decide(policy, facts, &request(&[], Placement::Auto)).unwrap()
}

#[test]
fn several_candidates_compete_by_score_cost_and_order() {
    let policy = policy(BY_HAND, "").unwrap();
    let check = |scores: [Option<f64>; 2], model: &str, code: &str| {
        let facts = known(scores, NO_TIMES, [9, 3]);
        assert_eq!(chosen(&policy, &facts), (model.to_owned(), code), "{scores:?}");
    };
    check([Some(0.6), Some(0.9)], "small", "score_above_threshold");
    check([Some(0.9), Some(0.6)], "tiny", "score_above_threshold");
    check([Some(0.7), Some(0.7)], "tiny", "score_above_threshold");
    check([Some(0.4), None], "dear", "score_below_threshold");
    check([None, Some(0.6)], "small", "score_above_threshold");
    check([None, None], "dear", "no_score");
    // Money, where a small model costs any, comes before the score.
    let mut facts = known([Some(0.6), Some(0.9)], NO_TIMES, [9, 3]);
    facts.candidates[1].expected_cost.amount = NanoUsd::new(1);
    assert_eq!(chosen(&policy, &facts).0, "tiny");
}

#[test]
fn a_large_model_that_the_budget_cannot_hold_is_passed_over_for_one_that_it_can() {
    let policy = policy(BY_HAND, "").unwrap();
    let check = |left: Option<i64>, model: &str, excluded: usize| {
        let facts = Facts { budget_left: left.map(NanoUsd::new), ..known([Some(0.1), None], NO_TIMES, [9, 3]) };
        let constraints = policy.constrain(&request(&[], Placement::Auto)).unwrap();
        let decision = policy.decide(&facts, &constraints).unwrap();
        assert_eq!(decision.model.as_str(), model, "{left:?}");
        let out = decision.candidates.iter().filter(|candidate| candidate.excluded_by.is_some()).count();
        assert_eq!(out, excluded, "{left:?}");
    };
    check(None, "dear", 0);
    check(Some(9), "dear", 0);
    check(Some(8), "fair", 1);
    // Where none fits, the hold refuses and says by how much.
    check(Some(2), "dear", 0);
}

#[test]
fn latency_ceilings_move_the_choice_and_never_buy_speed_with_quality() {
    let by = |when_late: &str| {
        policy(&format!("{BY_HAND}\nmax_latency = \"2s\"\nmax_first_byte = \"1500ms\"\n{when_late}"), "").unwrap()
    };
    let (quality, fastest, refuse) = (by(""), by("when_late = \"fastest\""), by("when_late = \"refuse\""));
    let check = |policy: &Policy, score: f64, seconds: [Option<f64>; 4], model: &str, code: &str| {
        let facts = known([Some(score), None], seconds, [9, 3]);
        assert_eq!(chosen(policy, &facts), (model.to_owned(), code), "{score} {seconds:?}");
    };
    let of = |tiny: f64, dear: f64, fair: f64| [Some(tiny), None, Some(dear), Some(fair)];
    check(&quality, 0.9, of(1.0, 1.0, 1.0), "tiny", "score_above_threshold");
    check(&quality, 0.9, of(3.0, 1.0, 1.0), "dear", "latency_ceiling");
    check(&quality, 0.1, of(1.0, 3.0, 1.0), "fair", "latency_ceiling");
    check(&quality, 0.1, of(3.0, 1.0, 1.0), "dear", "score_below_threshold");
    // Only the small model is fast enough, and not good enough.
    check(&quality, 0.1, of(1.0, 3.0, 4.0), "dear", "late");
    check(&fastest, 0.1, of(1.0, 3.0, 4.0), "tiny", "late");
    check(&quality, 0.9, of(4.0, 3.0, 5.0), "tiny", "late");
    check(&fastest, 0.9, of(4.0, 3.0, 5.0), "dear", "late");
    // What was never measured is not late.
    check(&refuse, 0.1, [None; 4], "dear", "score_below_threshold");
    check(&refuse, 0.1, [Some(9.0), None, Some(9.0), None], "fair", "latency_ceiling");
    let facts = known([Some(0.1), None], of(1.0, 3.0, 4.0), [9, 3]);
    let Err(Refusal::Late(each)) = decide(&refuse, &facts, &request(&[], Placement::Auto)) else { panic!("late") };
    assert!(each.iter().any(|(model, why)| model.as_str() == "dear" && why.0.contains("3.00 s, over max_latency")));
    // The first byte counts for streams alone: 1.6 s of 3.2.
    let long = policy(&format!("{BY_HAND}\nmax_first_byte = \"1500ms\""), "").unwrap();
    let facts = known([Some(0.9), None], of(3.2, 1.0, 1.0), [9, 3]);
    assert_eq!(chosen(&long, &facts).0, "tiny");
    assert_eq!(chosen(&long, &Facts { stream: true, ..facts }), ("dear".to_owned(), "latency_ceiling"));
    // Placement is not moved by a ceiling, only told.
    let remote = decide(&quality, &known([Some(0.9), None], of(1.0, 3.0, 4.0), [9, 3]), &{
        request(&[], Placement::RemoteOnly)
    });
    assert_eq!(remote.unwrap(), ("dear".to_owned(), "late"));
}

#[test]
fn demands_on_residency_combine_and_fail_closed() {
    let check = |rest: &str, asked: Residency, expected: Result<&str, &str>| {
        let policy = policy(BY_HAND, rest).unwrap();
        let asks = Request { residency: asked, ..request(&[], Placement::Auto) };
        let found = decide(&policy, &known([Some(0.1), Some(0.9)], NO_TIMES, [9, 3]), &asks);
        match (found, expected) {
            (Ok((model, _)), Ok(expected)) => assert_eq!(model, expected, "{rest}"),
            (Err(Refusal::NoRegion { field, .. }), Err(expected)) => assert_eq!(field, expected, "{rest}"),
            (found, _) => panic!("{rest}: {found:?}"),
        }
    };
    let eu = || Residency::only("ask.regions", ["eu"]);
    check("", Residency::anywhere(), Ok("small"));
    check("", eu(), Ok("fair"));
    check("regions = [\"eu\"]", Residency::anywhere(), Ok("fair"));
    check("regions = [\"eu\", \"us\"]", Residency::only("keys.regions", ["us"]), Ok("dear"));
    check("regions = [\"us\"]", eu(), Err("ask.regions"));
    check("", Residency::only("tenants.regions", ["mars"]), Err("tenants.regions"));
    // Under remote-only the labelled small model does not count; under local-only it alone does.
    let policy = policy(BY_HAND, "").unwrap();
    let asks = |placement, region: &str| Request {
        residency: Residency::only("ask.regions", [region]),
        ..request(&[], placement)
    };
    let facts = known([Some(0.1), Some(0.9)], NO_TIMES, [9, 3]);
    assert_eq!(decide(&policy, &facts, &asks(Placement::LocalOnly, "eu")).unwrap().0, "tiny");
    let refused = decide(&policy, &facts, &asks(Placement::LocalOnly, "us")).unwrap_err();
    assert!(matches!(&refused, Refusal::NoRegion { field, .. } if field == "ask.regions"), "{refused}");
    assert!(refused.to_string().contains("it has no region") && refused.to_string().contains("region eu"), "{refused}");
}

#[test]
fn a_conversation_that_went_remote_stays_there() {
    let check = |rest: &str, went_remote: bool, placement: Placement, model: &str, code: &str| {
        let policy = policy(BY_HAND, rest).unwrap();
        let facts = Facts { went_remote, ..known([Some(0.9), None], NO_TIMES, [9, 3]) };
        let found = decide(&policy, &facts, &request(&[], placement)).unwrap();
        assert_eq!(found, (model.to_owned(), code), "{rest} {went_remote}");
    };
    let sticky = "sticky = \"escalate-only\"\nsticky_ttl = \"10m\"";
    check(sticky, false, Placement::Auto, "tiny", "score_above_threshold");
    check(sticky, true, Placement::Auto, "dear", "sticky");
    check("", true, Placement::Auto, "tiny", "score_above_threshold");
    check("sticky = \"off\"", true, Placement::Auto, "tiny", "score_above_threshold");
    check(sticky, true, Placement::LocalOnly, "tiny", "placement");
    check(sticky, true, Placement::PreferLocal, "tiny", "placement");
    assert_eq!(policy(BY_HAND, sticky).unwrap().sticky, Some(Duration::from_secs(600)));
    assert_eq!(policy(BY_HAND, "sticky = \"escalate-only\"").unwrap().sticky, Some(Duration::from_secs(1_800)));
}

#[test]
fn every_problem_of_the_new_keys_is_told() {
    let check = |objective: &str, rest: &str, key: &str, words: &str| {
        let problems = policy(objective, rest).unwrap_err();
        let found = problems.iter().find(|problem| problem.key == key).unwrap_or_else(|| panic!("{key}: {problems:?}"));
        assert!(found.line > 1 && found.column > 0 && found.to_string().contains(words), "{found}");
    };
    check(BY_HAND, "sticky = \"always\"", "sticky", "none of off, escalate-only");
    check(BY_HAND, "sticky_ttl = \"1h\"", "sticky_ttl", "nothing sticks");
    check(BY_HAND, "sticky = \"escalate-only\"\nsticky_ttl = \"soon\"", "sticky_ttl", "no duration");
    check(BY_HAND, "regions = []", "regions", "names no region");
    check(BY_HAND, "regions = [\"mars\"]", "regions", "its models run in eu, us");
    check(&format!("{BY_HAND}\nmax_latency = \"2\""), "", "objective.max_latency", "500ms");
    check(&format!("{BY_HAND}\nwhen_late = \"refuse\""), "", "objective.when_late", "without a ceiling");
    let crossed = format!("{BY_HAND}\nmax_latency = \"1s\"\nmax_first_byte = \"2s\"");
    check(&crossed, "", "objective.max_first_byte", "later than the end");
    let experiment = |lines: &str| format!("{BY_HAND}\n[experiment]\n{lines}");
    check(&experiment("candidate = \"p\"\nshare = 0.1"), "", "experiment.candidate", "this policy itself");
    check(&experiment("candidate = \"q\"\nshare = 0"), "", "experiment.share", "tries nothing");
    check(&experiment("candidate = \"q\""), "", "experiment.share", "is missing");
    check(&experiment("candidate = \"q\"\nshare = 2"), "", "experiment.share", "not within");
    let rule = "[[rules]]\nname = \"r\"\nwhen = \"tokens > 5\"\nregions = [\"mars\"]";
    check(&format!("{BY_HAND}\n{rule}"), "", "rules[0].regions", "runs there");
}

#[test]
fn embedded_tests_reach_the_new_reasons() {
    let test = |lines: &str| {
        let objective = format!("{BY_HAND}\nmax_latency = \"2s\"\n[[tests]]\nname = \"t\"\nprompt = \"x\"\n{lines}");
        policy(&objective, "sticky = \"escalate-only\"")
    };
    let good = |lines: &str| drop(test(lines).unwrap_or_else(|problems| panic!("{problems:?}")));
    good("went_remote = true\nscore = 0.9\nexpect = { route = \"remote\", reason = \"sticky\" }");
    good("score = 0.9\npredicted = { tiny = \"3s\", small = \"3s\" }\nexpect = { reason = \"latency_ceiling\" }");
    good("regions = [\"eu\"]\nscore = 0.1\nexpect = { model = \"fair\" }");
    good("regions = [\"mars\"]\nexpect = { route = \"refused\" }");
    let problems = test("score = 0.9\nexpect = { reason = \"sticky\" }").unwrap_err();
    assert!(problems[0].message.contains("`sticky` was expected"), "{problems:?}");
    let problems = test("predicted = { tiny = 3 }\nexpect = { route = \"local\" }").unwrap_err();
    assert_eq!(problems[0].key, "tests[0].predicted.tiny");
}

const CEILING: &str = "goal = \"max-quality\"\nmax_cost = \"0.40 USD / 1k requests\"\nwindow = \"1h\"";

fn spending(policy: &Policy, threshold: Option<f64>) -> String {
    let certificate = SpendingCertificate {
        schema: SPENDING_SCHEMA,
        goal: SpendingCertificate::goal(),
        policy: "p".to_owned(),
        policy_hash: policy.reference.hash.clone(),
        scorer_version: "v1".to_owned(),
        evidence_hash: "e".to_owned(),
        small: "tiny".to_owned(),
        large: "dear".to_owned(),
        threshold,
        n: 900,
        paid: 300,
        ceiling_usd_per_1000: 0.4,
        mean_usd_per_1000: 0.3,
        bound_usd_per_1000: 0.39,
        most_usd: 0.01,
        confidence: 0.95,
        local_share: 0.5,
        date: "2026-11-24".to_owned(),
    };
    certificate.to_toml().unwrap()
}

#[test]
fn the_best_quality_under_a_ceiling_is_local_where_nothing_is_proven_or_left() {
    let check = |threshold: Option<Option<f64>>, score: Option<f64>, left: i64, expected: (&str, &str)| {
        let mut policy = policy(CEILING, "").unwrap();
        let text = threshold.map(|threshold| spending(&policy, threshold));
        policy.certify_by("p.solved.toml", text.as_deref(), Some("v1"));
        let facts = Facts { allowance: Some(NanoUsd::new(left)), ..known([score, None], NO_TIMES, [9, 3]) };
        let (model, code) = chosen(&policy, &facts);
        assert_eq!((model.as_str(), code), expected, "{threshold:?} {score:?} {left}");
    };
    check(Some(Some(0.5)), Some(0.9), 9, ("tiny", "score_above_threshold"));
    check(Some(Some(0.5)), Some(0.1), 9, ("dear", "score_below_threshold"));
    check(Some(Some(0.5)), Some(0.1), 8, ("fair", "score_below_threshold"));
    check(Some(Some(0.5)), Some(0.1), 2, ("tiny", "cost_ceiling"));
    check(Some(Some(0.5)), Some(0.1), -2, ("tiny", "cost_ceiling"));
    check(Some(Some(0.5)), Some(0.9), -2, ("tiny", "score_above_threshold"));
    check(Some(Some(0.5)), None, 9, ("tiny", "no_score"));
    check(Some(None), Some(0.1), 9, ("tiny", "no_certificate"));
    check(None, Some(0.1), 9, ("tiny", "no_certificate"));
}

#[test]
fn whoever_must_go_remote_is_refused_when_the_ceiling_has_no_room() {
    let policy = policy(CEILING, "").unwrap();
    let facts = Facts { allowance: Some(NanoUsd::new(2)), ..known([Some(0.9), None], NO_TIMES, [9, 3]) };
    let refused = decide(&policy, &facts, &request(&[], Placement::RemoteOnly)).unwrap_err();
    assert!(matches!(refused, Refusal::CostCeiling(_)) && refused.to_string().contains("max_cost leaves"), "{refused}");
    let allowed = Facts { allowance: Some(NanoUsd::new(9)), ..facts };
    assert_eq!(decide(&policy, &allowed, &request(&[], Placement::RemoteOnly)).unwrap().0, "dear");
}

#[test]
fn a_certificate_of_another_ceiling_policy_scorer_or_kind_is_not_used() {
    let fresh = || policy(CEILING, "").unwrap();
    let text = spending(&fresh(), Some(0.5));
    let check = |from: &str, to: &str, version: Option<&str>, words: &str| {
        assert!(text.contains(from));
        let mut policy = fresh();
        policy.certify_by("p.solved.toml", Some(&text.replace(from, to)), version);
        assert_eq!(policy.threshold(), None);
        assert!(policy.certificate().describe().contains(words), "{}", policy.certificate().describe());
    };
    check("ceiling_usd_per_1000 = 0.4", "ceiling_usd_per_1000 = 0.5", Some("v1"), "promises 0.5 USD");
    check("\"tiny\"", "\"other\"", Some("v1"), "small model other");
    check("\"tiny\"", "\"tiny\"", Some("v2"), "solved for scorer v1");
    check("\"tiny\"", "\"tiny\"", None, "no scorer");
    check("n = 900", "n = -1", Some("v1"), "p.solved.toml");
    let mut policy = fresh();
    policy.certify_by("p.solved.toml", Some(include_str!("../../../../policies/balanced.solved.toml")), Some("v1"));
    assert!(policy.certificate().describe().contains("about quality"));
    policy.certify_by("p.solved.toml", Some(&text), Some("v1"));
    assert_eq!(policy.threshold(), Some(0.5));
}

#[test]
fn problems_of_a_ceiling_are_told() {
    let check = |from: &str, to: &str, key: &str, words: &str| {
        let problems = policy(&CEILING.replace(from, to), "").unwrap_err();
        let found = problems.iter().find(|problem| problem.key == key).unwrap_or_else(|| panic!("{key}: {problems:?}"));
        assert!(found.to_string().contains(words), "{found}");
    };
    for wrong in
        ["0.40 USD", "0.40 EUR / 1k requests", "0 USD / 1k requests", "-1 USD / 1k requests", "1 USD / 2k requests"]
    {
        check("0.40 USD / 1k requests", wrong, "objective.max_cost", "0.40 USD / 1k requests");
    }
    check("max_cost = \"0.40 USD / 1k requests\"\n", "", "objective.max_cost", "is missing");
    check("\"1h\"", "\"1s\"", "objective.window", "shorter than a minute");
    check("\"1h\"", "\"1h\"\nquality_target = 0.9", "objective.quality_target", "is not a key here");
    check("\"1h\"", "\"1h\"\nconfidence = 2", "objective.confidence", "not within");
    check("\"1h\"", "\"1h\"\n[on_breach]\nquality = \"tighten\"", "on_breach.quality", "would spend more");
    let bound = |rest: &str, key: &str, words: &str| {
        let problems = policy(CEILING, rest).unwrap_err();
        let found = problems.iter().find(|problem| problem.key == key).unwrap_or_else(|| panic!("{key}: {problems:?}"));
        assert!(found.to_string().contains(words), "{found}");
    };
    bound("placement = \"remote-only\"", "objective.goal", "no small model may");
    bound("placement = \"local-only\"", "objective.goal", "nothing to spend on");
    bound("placement = \"local-only\"\nsticky = \"escalate-only\"", "sticky", "where none can go");
    let same = policy(&CEILING.replace("1k", "1000"), "").unwrap();
    let Objective::MaxQuality(ceiling) = same.objective else { panic!("{:?}", same.objective) };
    assert_eq!((ceiling.per_1000.nanos(), ceiling.confidence), (400_000_000, 0.95));
}

proptest! {
    #[test]
    fn whatever_is_known_ceilings_and_residency_are_kept(
        scores in prop::array::uniform2(prop::option::of(0.0..=1.0_f64)),
        times in prop::array::uniform4(prop::option::of(0.0..4.0_f64)),
        worst in prop::array::uniform2(0..20_i64),
        allowance in prop::option::of(-5..20_i64),
        budget in prop::option::of(0..20_i64),
        flags in prop::array::uniform3(any::<bool>()),
        region in prop::sample::select(vec!["", "eu", "us"]),
        goal in prop::sample::select(vec![BY_HAND, CEILING]),
        when_late in prop::sample::select(vec!["quality", "fastest", "refuse"]),
    ) {
        let [stream, went_remote, certified] = flags;
        let objective = format!("{goal}\nmax_latency = \"2s\"\nwhen_late = \"{when_late}\"");
        let mut policy = policy(&objective, "sticky = \"escalate-only\"").unwrap();
        if goal == CEILING && certified {
            policy.certify_by("p.solved.toml", Some(&spending(&policy, Some(0.5))), Some("v1"));
        }
        let allowance = allowance.filter(|_| goal == CEILING).map(NanoUsd::new);
        let facts = Facts { stream, went_remote, allowance, budget_left: budget.map(NanoUsd::new), ..known(scores, times, worst) };
        let residency = if region.is_empty() { Residency::anywhere() } else { Residency::only("ask.regions", [region]) };
        let asked = Request { residency: residency.clone(), ..request(&[], Placement::Auto) };
        let constraints = policy.constrain(&asked).unwrap();
        match policy.decide(&facts, &constraints) {
            Ok(decision) => {
                let used = [Some(&decision.model), decision.escalate_to.as_ref()].into_iter().flatten().chain(&decision.fallbacks);
                for model in used {
                    let candidate = decision.candidates.iter().find(|candidate| candidate.model == *model).unwrap();
                    prop_assert!(candidate.excluded_by.is_none(), "{candidate:?}");
                    prop_assert!(residency.permits(candidate.region.as_deref()));
                    if let (Some(left), Route::Remote) = (allowance, candidate.route) {
                        prop_assert!(candidate.worst_cost <= left, "{candidate:?}");
                    }
                    let late = candidate.predicted.is_some_and(|predicted| predicted.total > Duration::from_secs(2));
                    prop_assert!(!late || decision.reason.code == ReasonCode::Late, "{decision:?}");
                }
                let served = decision.candidates.iter().find(|candidate| candidate.model == decision.model).unwrap();
                let reached = served.score.is_some_and(|score| score.get() >= 0.5);
                let slow = when_late == "fastest" && decision.reason.code == ReasonCode::Late;
                if goal == BY_HAND && served.route == Route::Local && !slow {
                    prop_assert!(reached, "no small model serves below the threshold: {decision:?}");
                }
            }
            Err(refusal) => prop_assert!(!refusal.to_string().is_empty()),
        }
    }
}
