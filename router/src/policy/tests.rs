use super::*;
use crate::domain::{
    Candidate, Constraints, ExcludedBy, Labels, Limits, Message, ReasonCode, Request, RequestId, Role, Route, Score,
    TenantId,
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
        residency: Residency::anywhere(),
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
    check("\"min-cost\"", "\"max-quality\"", "objective.max_cost", "is missing");
    check("0.95\nconf", "1.95\nconf", "objective.quality_target", "not within");
    check("ttl = \"1h\"", "ttl = \"1x\"", "cache.exact.ttl", "30s");
    let escalate = |second: &str, words: &str| {
        check("[escalate]", &format!("[escalate]\nsecond = \"{second}\""), "escalate.second", words);
    };
    escalate("sluice-nano", "would agree with itself");
    escalate("openai/gpt-4.1-mini", "is remote");
    escalate("sampel", "did you mean `sample`?");
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
    check("enabled = true", "enabled = false\nenable = 1", "escalate.enable", "did you mean `enabled`?");
    check("ttl = \"1h\"", "ttl = \"0s\"", "cache.exact.ttl", "no duration");
    check("labels.data_class == \"restricted\"", "1 == 2", "rules[0].when", "constant");
    check("labels.data_class == \"restricted\"", "turns > 9 && foo(prompt)", "rules[0].when", "calls foo");
    check(
        "placement = \"local-only\"",
        "placement = \"local-only\"\nmodel = \"openai/gpt-4.1-mini\"",
        "rules[0].model",
        "can't serve",
    );
    check("daily = \"25 USD\"", "daily = \"25 USD\", monthly = \"24 USD\"", "budget.per_tenant", "more than its month");
    check("route = \"refused\"", "route = \"refused\", model = \"x\"", "tests[1].expect.route", "has no model");
    check("name = \"no score", "name = \"restricted text never leaves\" # ", "tests[3].name", "already");
    check("enabled = true", "enabled = \"yes\"", "escalate.enabled", "true or false");
}

#[test]
fn a_policys_own_placement_must_fit_its_settings() {
    let check = |placement: &str, key: &str, words: &str| {
        let text = format!("placement = \"{placement}\"\n{}", balanced());
        let problems = Policy::parse("p.toml", &text, &catalog()).unwrap_err();
        let found = problems.iter().find(|problem| problem.key == key).unwrap_or_else(|| panic!("{key}: {problems:?}"));
        assert!(found.line > 1 && found.to_string().contains(words), "{found}");
    };
    check("remote-only", "rules[0].placement", "contradicts");
    check("remote-only", "budget.on_exhausted", "use `reject`");
    check("local-only", "escalate.enabled", "leave it out");
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

fn with_rule(when: &str, effect: &str) -> Policy {
    let text = format!("{}\n[[rules]]\nname = \"added\"\nwhen = '''{when}'''\n{effect}\n", balanced());
    Policy::parse("p.toml", &text, &catalog()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn facts(candidates: &[(&str, Option<f64>, bool)]) -> Facts {
    let candidate = |(name, score, open): &(&str, Option<f64>, bool)| Candidate {
        score: score.map(|score| Score::new(score).unwrap()),
        excluded_by: (!open).then(|| ExcludedBy("breaker open".to_owned())),
        ..Candidate::new(ModelId::new(*name), if name.starts_with("openai") { Route::Remote } else { Route::Local })
    };
    Facts { candidates: candidates.iter().map(candidate).collect(), draw: 0.9, ..Facts::default() }
}

#[test]
fn expressions_read_the_request_and_padding_hides_nothing() {
    let check = |when: &str, expected: bool| {
        let mut request = request(&[("team", "a"), ("odd key", "b")], Placement::Auto);
        let long = format!("{}SECRET", "ä ".repeat(100_000));
        request.messages = vec![
            Message::text(Role::User, "first"),
            Message::text(Role::Assistant, "answer"),
            Message::text(Role::User, long),
        ];
        request.conversation_id = "c1".to_owned();
        request.end_user_id = "u1".to_owned();
        let constraints = with_rule(when, "cache = \"off\"").constrain(&request).unwrap();
        assert_eq!(constraints.rule.as_deref() == Some("added"), expected, "{when}");
        assert_eq!(constraints.cache_read, !expected, "{when}");
    };
    check("prompt.contains(\"SECRET\")", true);
    check("prompt.contains(\"first\")", false);
    check("prompt.matches(\"SECR.T$\")", true);
    check("turns == 3 && tokens > 1000", true);
    check("tenant == \"t\" && conversation == \"c1\" && end_user == \"u1\"", true);
    check("placement == \"local-only\"", false);
    check("labels.team == \"a\" && labels[\"odd key\"] == \"b\"", true);
    check("labels.absent == \"\" && labels[ 'other' ] == \"\" && labels . third == \"\"", true);
    check("labels.absent == \"x\"", false);
    check("\n  labels.team == \"a\"\n", true);
    check("labels.team in [\"a\", \"b\"]", true);
}

#[test]
fn a_syntax_error_is_placed_within_a_long_expression() {
    let rule = "[[rules]]\nname = \"r\"\nwhen = '''\ntokens > 5 &&\n  turns = 3'''\ncache = \"off\"\n";
    let problems = Policy::parse("p.toml", &format!("{rule}{}", balanced()), &catalog()).unwrap_err();
    let found = problems.iter().find(|problem| problem.key == "rules[0].when").unwrap();
    assert_eq!(found.line, 5, "{found}");
}

#[test]
fn a_rule_that_names_a_model_gets_it_or_nothing() {
    let check = |model: &str, up: bool, expected: Option<Route>| {
        let policy = with_rule("labels.team == \"a\"", &format!("model = \"{model}\""));
        let constraints = policy.constrain(&request(&[("team", "a")], Placement::Auto)).unwrap();
        let facts = facts(&[("sluice-nano", Some(0.5), up), ("openai/gpt-4.1-mini", None, up)]);
        let decision = policy.decide(&facts, &constraints);
        assert_eq!(decision.as_ref().ok().map(|decision| decision.route), expected, "{decision:?}");
        if let Ok(decision) = decision {
            assert_eq!((decision.model.as_str(), decision.reason.code), (model, ReasonCode::Rule));
            assert_eq!((decision.escalate_to, decision.fallbacks), (None, Vec::new()));
        }
    };
    check("sluice-nano", true, Some(Route::Local));
    check("openai/gpt-4.1-mini", true, Some(Route::Remote));
    check("sluice-nano", false, None);
}

#[test]
fn while_remote_is_down_local_serves_what_the_policy_allows() {
    let check = |policy: &str, score: Option<f64>, expected: Option<ReasonCode>| {
        let policy = Policy::parse("p.toml", policy, &catalog()).unwrap();
        let constraints = policy.constrain(&request(&[], Placement::Auto)).unwrap();
        let facts = facts(&[("sluice-nano", score, true), ("openai/gpt-4.1-mini", None, false)]);
        let decision = policy.decide_with(&facts, &constraints, Some(0.8));
        assert_eq!(decision.as_ref().ok().map(|decision| decision.reason.code), expected, "{decision:?}");
        assert!(decision.is_err() || decision.is_ok_and(|decision| decision.route == Route::Local));
    };
    check(balanced(), Some(0.9), Some(ReasonCode::ScoreAboveThreshold));
    check(balanced(), Some(0.7), None);
    check(balanced(), None, None);
    let lenient = balanced().replace("remote_down = \"error\"", "remote_down = \"local\"");
    check(&lenient, Some(0.7), Some(ReasonCode::RemoteUnavailable));
    check(&lenient, None, Some(ReasonCode::RemoteUnavailable));
}

#[test]
fn the_reason_names_who_placed_the_request() {
    let policy = with_rule("labels.team == \"a\"", "cache = \"off\"");
    let check = |labels: &[(&str, &str)], asked: Placement, by: &str, code: ReasonCode| {
        let constraints = policy.constrain(&request(labels, asked)).unwrap();
        assert_eq!(constraints.placement_by, by);
        let facts = facts(&[("sluice-nano", None, true), ("openai/gpt-4.1-mini", None, true)]);
        assert_eq!(policy.decide(&facts, &constraints).unwrap().reason.code, code);
    };
    check(&[("team", "a")], Placement::RemoteOnly, "client", ReasonCode::Placement);
    let rule = "rule `restricted data stays here`";
    check(&[("data_class", "restricted")], Placement::PreferRemote, rule, ReasonCode::Rule);
    check(&[], Placement::Auto, "default", ReasonCode::NoCertificate);
}

#[test]
fn a_certificate_speaks_only_for_the_model_it_was_solved_for() {
    let mut policy = Policy::parse("balanced.toml", balanced(), &catalog()).unwrap();
    policy.certify(Some(Ok(certificate(&policy))), Some("v1"));
    let constraints = policy.constrain(&request(&[], Placement::Auto)).unwrap();
    let check = |candidates: &[(&str, Option<f64>, bool)], model: &str, code: ReasonCode| {
        let decision = policy.decide(&facts(candidates), &constraints).unwrap();
        assert_eq!((decision.model.as_str(), decision.reason.code), (model, code));
    };
    let large = ("openai/gpt-4.1-mini", None, true);
    check(
        &[("sluice-nano", Some(0.9), true), ("other", Some(0.99), true), large],
        "sluice-nano",
        ReasonCode::ScoreAboveThreshold,
    );
    check(&[("sluice-nano", Some(0.9), false), ("other", Some(0.99), true), large], large.0, ReasonCode::NoCertificate);
    check(
        &[("sluice-nano", Some(0.1), true), ("other", Some(0.99), true), large],
        large.0,
        ReasonCode::ScoreBelowThreshold,
    );
}

#[test]
fn tests_in_a_policy_can_hold_whole_conversations_and_expect_a_reason() {
    let check = |test: &str, words: &str| {
        let text = format!("{}\n[[tests]]\nname = \"added\"\n{test}\n", balanced());
        let problems = Policy::parse("p.toml", &text, &catalog()).err().unwrap_or_default();
        let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(
            if words.is_empty() { shown.is_empty() } else { shown.iter().any(|line| line.contains(words)) },
            "{shown:?}"
        );
    };
    let turns = "messages = [{ role = \"system\", text = \"Be brief\" }, { role = \"user\", text = \"Hi\" }]";
    check(&format!("{turns}\nthreshold = 0.5\nexpect = {{ reason = \"no_score\" }}"), "");
    check(&format!("{turns}\nthreshold = 0.5\nexpect = {{ reason = \"placement\" }}"), "reason is `no_score`");
    check(&format!("{turns}\nprompt = \"Hi\"\nexpect = {{ route = \"remote\" }}"), "beside `messages`");
    check("prompt = \"Hi\"\nexpect = { reason = \"no_scor\" }", "did you mean `no_score`?");
    check("messages = [{ role = \"usr\" }]\nexpect = { route = \"remote\" }", "did you mean `user`?");
    check("expect = { route = \"remote\" }", "is missing");
}

fn certificate(policy: &Policy) -> Certificate {
    Certificate {
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
        reference: None,
    }
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
    let certificate = certificate(&policy);
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
    check(|certificate| certificate.large = "other".to_owned(), Some("v1"));
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
                score: scores[index].filter(|_| index == 0).map(|score| Score::new(score).unwrap()),
                excluded_by: excluded[index].then(|| ExcludedBy("test".to_owned())),
                ..Candidate::new(ModelId::new(*name), if index == 0 { Route::Local } else { Route::Remote })
            })
            .collect();
        let constraints = Constraints {
            placement,
            placement_by: "client".to_owned(),
            rule: None,
            model: None,
            residency: Residency::anywhere(),
            cache_read: true,
            cache_write: true,
        };
        let facts = Facts { candidates, draw, ..Facts::default() };
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

mod objectives;
