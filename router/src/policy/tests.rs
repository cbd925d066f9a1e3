use super::*;
use crate::domain::{
    Candidate, Constraints, Cost, ExcludedBy, Labels, Limits, Message, Request, RequestId, Role, Route, Score, TenantId,
};
use proptest::prelude::*;

fn catalog() -> Catalog {
    Catalog::parse("models.toml", include_str!("../../../policies/models.toml")).unwrap()
}

fn balanced() -> &'static str {
    include_str!("../../../policies/balanced.toml")
}

fn request(labels: &[(&str, &str)], placement: Placement) -> Request {
    Request {
        id: RequestId::fresh(),
        tenant: TenantId::new("t"),
        key_name: String::new(),
        messages: vec![Message::text(Role::User, "hello")],
        limits: Limits::default(),
        placement,
        placement_floor: Placement::Auto,
        policy: None,
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Labels>(),
        conversation_id: String::new(),
        end_user_id: String::new(),
        deadline: None,
        stream: false,
    }
}

#[test]
fn every_shipped_policy_parses_and_its_tests_pass() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".toml") || name == "models.toml" || name.ends_with(".solved.toml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let policy = Policy::parse(&name, &text, &catalog()).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(format!("{}.toml", policy.reference.name), name);
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn every_problem_is_found_with_its_place() {
    let check = |from: &str, to: &str, key: &str, words: &str| {
        assert!(balanced().contains(from), "{from}");
        let text = balanced().replacen(from, to, 1);
        let problems = Policy::parse("p.toml", &text, &catalog()).unwrap_err();
        let line = text[..text.find(to).unwrap()].matches('\n').count() + 1;
        let found = problems.iter().find(|problem| problem.key == key).unwrap_or_else(|| panic!("{key}: {problems:?}"));
        assert!(found.to_string().contains(words), "{found}");
        // A failing test is reported at the head of its table, a few lines above.
        assert!(found.line + 6 > line && found.line < line + 3, "{found} is not about line {line}");
    };
    check("description =", "desciption =", "desciption", "did you mean `description`?");
    check("\"sluice-nano\"", "\"sluice-nan\"", "models.small", "did you mean `sluice-nano`?");
    check("\"min-cost\"", "\"min-cots\"", "objective.goal", "did you mean `min-cost`?");
    check("\"min-cost\"", "\"max-quality\"", "objective.goal", "not in this build");
    check("0.95\nconf", "1.95\nconf", "objective.quality_target", "not within");
    check("ttl = \"1h\"", "ttl = \"1x\"", "cache.exact.ttl", "30s");
    check("exact = {", "semantic = { ttl = \"1m\" }\nexact = {", "cache.semantic", "not in this build");
    check("== \"restricted\"'", "= \"restricted\"'", "rules[0].when", "no CEL expression");
    check("labels.data_class ==", "label.data_class ==", "rules[0].when", "rules know only");
    check("labels.data_class == \"restricted\"", "1 + 1", "rules[0].when", "not true or false");
    check("labels.data_class == \"restricted\"", "false", "rules[0].when", "constant");
    check("\"25 USD\"", "\"25 EUR\"", "budget.per_tenant.daily", "USD");
    check(
        "expect = { route = \"local\", rule",
        "expect = { route = \"remote\", rule",
        "tests[0]",
        "`remote` was expected",
    );
    check("enabled = true", "enabled = \"yes\"", "escalate.enabled", "true or false");
}

#[test]
fn all_problems_come_at_once_and_syntax_errors_too() {
    let problems =
        Policy::parse("p.toml", "name = \"X Y\"\nspeling = 1\n[objective]\ngoal = 3\n", &catalog()).unwrap_err();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    for key in ["name", "speling", "models", "objective.goal"] {
        assert!(keys.contains(&key), "{key} in {keys:?}");
    }
    let syntax = Policy::parse("p.toml", "name = = 3\n", &catalog()).unwrap_err();
    assert!(syntax.iter().any(|problem| problem.line == 1 && problem.key.is_empty()), "{syntax:?}");
}

#[test]
fn rules_that_can_never_match_are_problems() {
    let rule =
        |when: &str| format!("[[rules]]\nname = \"{}\"\nwhen = '{when}'\nplacement = \"local-only\"\n", when.len());
    let text = format!("{}\n{}{}{}", balanced(), rule("tokens > 5"), rule("true"), rule("tokens > 5 "));
    let problems = Policy::parse("p.toml", &text, &catalog()).unwrap_err();
    assert!(problems.iter().any(|problem| problem.message.contains("always does")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.message.contains("same condition")), "{problems:?}");
}

#[test]
fn a_restricting_rule_that_fails_counts_as_a_match() {
    let failing = "[[rules]]\nname = \"fragile\"\nwhen = 'int(labels.level) > 3'\n";
    let sample = "labels.level == \"\" ? false : int(labels.level) > 3";
    let check = |effect: &str, expected: bool| {
        let text = format!("{}\n{}{effect}\n", balanced(), failing.replace("int(labels.level) > 3", sample));
        let policy = Policy::parse("p.toml", &text, &catalog()).unwrap();
        let constraints = policy.constrain(&request(&[("level", "high")], Placement::Auto)).unwrap();
        assert_eq!(constraints.rule.as_deref() == Some("fragile"), expected, "{effect}");
        let failed = policy.rule_errors().into_iter().filter(|(_, restricting, other)| restricting + other > 0);
        assert_eq!(failed.count(), 1);
    };
    check("placement = \"local-only\"", true);
    check("placement = \"prefer-local\"", false);
}

#[test]
fn a_certificate_must_match_policy_scorer_and_promise() {
    let mut policy = Policy::parse("balanced.toml", balanced(), &catalog()).unwrap();
    let certificate = Certificate {
        policy: "balanced".to_owned(),
        policy_hash: policy.reference.hash.clone(),
        scorer_version: "v1".to_owned(),
        evidence_hash: "e".to_owned(),
        small: "sluice-nano".to_owned(),
        large: "*".to_owned(),
        threshold: Some(0.8),
        n: 1000,
        bound: 0.0,
        confidence: 0.95,
        target: 0.95,
        local_share: 0.4,
        needed: None,
        method: crate::evidence::certificate::Method::Betting,
        date: "2026-01-01".to_owned(),
    };
    policy.certify(Some(Ok(certificate.clone())), Some("v1"));
    assert_eq!(policy.threshold(), Some(0.8));
    let mut check = |change: fn(&mut Certificate), version: Option<&str>| {
        let mut changed = certificate.clone();
        change(&mut changed);
        policy.certify(Some(Ok(changed)), version);
        assert_eq!(policy.threshold(), None, "{:?}", policy.certificate());
    };
    check(|_| {}, Some("v2"));
    check(|_| {}, None);
    check(|certificate| certificate.policy_hash = "other".to_owned(), Some("v1"));
    check(|certificate| certificate.target = 0.5, Some("v1"));
    check(|certificate| certificate.small = "other".to_owned(), Some("v1"));
    policy.certify(None, Some("v1"));
    assert_eq!(policy.certificate(), &CertificateState::Missing);
}

fn placements() -> impl Strategy<Value = Placement> {
    prop::sample::select(vec![
        Placement::Auto,
        Placement::LocalOnly,
        Placement::PreferLocal,
        Placement::PreferRemote,
        Placement::RemoteOnly,
    ])
}

proptest! {
    #[test]
    fn deciding_is_total_and_keeps_the_placement(
        placement in placements(),
        scores in prop::collection::vec(prop::option::of(0.0..=1.0_f64), 3),
        excluded in prop::collection::vec(any::<bool>(), 3),
        draw in 0.0..1.0_f64,
        threshold in prop::option::of(0.0..=1.0_f64),
    ) {
        let policy = Policy::parse("balanced.toml", balanced(), &catalog()).unwrap();
        let candidates: Vec<Candidate> = ["sluice-nano", "openai/gpt-4.1-mini", "openai/gpt-4.1-nano"]
            .iter()
            .enumerate()
            .map(|(index, name)| Candidate {
                model: ModelId::new(*name),
                route: if index == 0 { Route::Local } else { Route::Remote },
                score: scores[index].filter(|_| index == 0).map(|score| Score::new(score).unwrap()),
                expected_cost: Cost::FREE,
                excluded_by: excluded[index].then(|| ExcludedBy("test".to_owned())),
            })
            .collect();
        let constraints = Constraints {
            placement,
            placement_by: "client".to_owned(),
            rule: None,
            model: None,
            cache_read: true,
            cache_write: true,
        };
        let facts = Facts { candidates, scorer_version: String::new(), draw };
        match policy.decide_with(&facts, &constraints, threshold) {
            Ok(decision) => {
                let used = [Some(&decision.model), decision.escalate_to.as_ref()].into_iter().flatten().chain(&decision.fallbacks);
                for model in used {
                    let candidate = decision.candidates.iter().find(|candidate| candidate.model == *model).unwrap();
                    prop_assert!(candidate.excluded_by.is_none());
                    prop_assert!(placement != Placement::LocalOnly || candidate.route == Route::Local);
                    prop_assert!(placement != Placement::RemoteOnly || candidate.route == Route::Remote);
                }
                prop_assert!(decision.propensity > 0.0 && decision.propensity <= 1.0);
                if placement == Placement::Auto && decision.route == Route::Local {
                    prop_assert!(decision.threshold.is_some_and(|threshold| scores[0].unwrap() as f32 as f64 >= threshold));
                }
            }
            Err(Refusal::NoCandidate(each)) => prop_assert!(!each.is_empty()),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
