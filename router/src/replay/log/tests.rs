use super::*;

const GOOD: &str = r#"{"id":"ID","at_ms":10,"tenant":"acme","level":"features","model":"s","route":"local","propensity":0.25,"alternatives":{"l":0.75},"candidates":[{"model":"s","route":"local","score":0.5,"cost_nano_usd":0},{"model":"l","route":"remote","score":null,"cost_nano_usd":9,"excluded_by":"placement local-only (key)"}],"escalates":true,"cost_nano_usd":0,"latency_ms":3.5,"quality":1}"#;

fn line(id: &str) -> String {
    GOOD.replace("ID", id) + "\n"
}

#[test]
fn bad_rows_are_named_by_file_line_and_field_with_the_mend() {
    let check = |from: &str, to: &str, expected: &str| {
        assert!(line("2").contains(from), "{from}");
        let text = line("1") + &line("2").replace(from, to);
        let error = Log::parse("a.jsonl", &text).unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl:2: ") && error.contains(expected), "{from} → {to}: {error}");
    };
    check("\"propensity\":0.25", "\"propensity\":0", "propensity: 0 is not above 0");
    check("\"propensity\":0.25", "\"propensity\":1.5", "propensity: 1.5 is not above 0 and at most 1");
    check("\"propensity\":0.25,", "", "propensity: is missing; write the probability");
    check("\"propensity\":0.25", "\"propensity\":0.5", "alternatives: probabilities above 0 that sum");
    check("\"quality\":1", "\"quality\":NaN", "row: expected value");
    check("\"quality\":1", "\"quality\":2", "quality: 2 is not within 0 and 1");
    check("\"latency_ms\":3.5", "\"latency_ms\":-3", "latency_ms: -3 is no time; the clock went back?");
    check("\"cost_nano_usd\":0,\"latency", "\"cost_nano_usd\":-1,\"latency", "cost_nano_usd: -1 is below 0");
    check("\"id\":\"2\"", "\"id\":\"1\"", "id: \"1\" is there twice");
    check("\"route\":\"local\",\"prop", "\"route\":\"moon\",\"prop", "route: `moon` is none of");
    check("\"level\":\"features\"", "\"level\":\"text\"", "messages: is empty, but the level is text");
    check("\"level\":\"features\"", "\"level\":\"all\"", "level: `all` is none of");
    check("\"score\":0.5", "\"score\":7", "candidates: 7 is not a probability");
    check("\"tenant\"", "\"tenet\"", "row: unknown field `tenet`");
    let torn = line("1") + &line("2")[..60];
    let error = Log::parse("a.jsonl", &torn).unwrap_err().to_string();
    assert!(error.contains("a.jsonl:2: row: the file ends within this row") && error.contains("remove the row"));
    assert!(matches!(Log::parse("a.jsonl", "\n"), Err(ReplayError::Empty(_))));
}

#[test]
fn clocks_that_went_back_are_put_in_order_and_told() {
    let text = line("1") + &line("2").replace("\"at_ms\":10", "\"at_ms\":3");
    let log = Log::parse("a.jsonl", &text).unwrap();
    assert_eq!(log.rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["2", "1"]);
    assert!(log.warnings[0].contains("1 rows are older"), "{:?}", log.warnings);
}

#[test]
fn a_row_knows_what_else_could_have_been_chosen() {
    let log = Log::parse("a.jsonl", &line("1")).unwrap();
    let row = &log.rows[0];
    let (local, remote) =
        (row.action.clone().unwrap(), Action { model: ModelId::new("l"), escalates: false, judged: false });
    assert!(local.escalates && row.local);
    assert_eq!(row.propensities, BTreeMap::from([(local, 0.25), (remote, 0.75)]));
    // What a placement excluded is decided anew.
    assert_eq!(row.candidates[1].excluded_by, None);
}
