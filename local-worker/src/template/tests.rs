//! Templates that render, refuse and fail; those of the families stand beside `transformers` in `tests/templates.rs`.

use super::*;

fn turn(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.to_owned() }
}

#[test]
fn templates_render_refuse_and_stop() {
    let check = |source: &str, expected: Result<&str, &str>| {
        let template = ChatTemplate::new(Some(source), "<s>", "</s>").unwrap();
        let got = template.render(&[turn("user", " hi "), turn("assistant", "yo")]);
        match (got, expected) {
            (Ok(got), Ok(want)) => assert_eq!(got, want),
            (Err(got), Err(want)) => assert!(got.contains(want), "{got} should name {want}"),
            (got, want) => panic!("{got:?} for {want:?}"),
        }
    };
    check(
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}:{{ m.content | trim }}]{% endfor %}",
        Ok("<s>[user:hi][assistant:yo]"),
    );
    check("{%- for m in messages %}\n  {{- m.content.strip().upper() }}\n{%- endfor %}", Ok("HIYO"));
    check(
        "{% if messages[0].role == 'user' %}\n{{ raise_exception('no user first') }}\n{% endif %}",
        Err("no user first (line 2"),
    );
    check("{% for i in range(9999999) %}{% for j in range(9999999) %}x{% endfor %}{% endfor %}", Err(""));
    check("{{ strftime_now('%Y') | length }}{% if add_generation_prompt %}>{% endif %}", Ok("4>"));
    check("{{ messages | tojson | length > 20 }}", Ok("True"));
}

#[test]
fn without_a_template_the_plain_form_serves_and_bad_jinja_is_refused() {
    let plain = ChatTemplate::new(None, "", "").unwrap();
    assert_eq!(plain.render(&[turn("user", "hi")]).unwrap(), "user: hi\nassistant:");
    assert!(ChatTemplate::new(Some("{% for %}"), "", "").is_err());
}

/// What rendering a template comes to, which must be a refusal in a few words.
fn refusal(source: &str) -> String {
    let told = match ChatTemplate::new(Some(source), "", "") {
        Ok(template) => template.render(&[turn("user", "hi")]).unwrap_err(),
        Err(told) => told,
    };
    assert!(!told.is_empty() && told.len() < 500, "{told}");
    told
}

#[test]
fn hostile_templates_end_soon_and_say_why() {
    refusal("{{ [1] | tojson(indent=999999) }}");
    refusal("{{ messages[0].content.nothing.at_all }}");
    refusal("{{ unknown_function() }}");
    refusal("{{ strftime_now('%5') }}");
    refusal("{{ 9 ** 99999 }}");
    assert!(refusal("{{ '{:999999999}'.format(1) }}").contains("a width above"));
    assert!(refusal("{{ '{:99999999999999999999999}'.format(1) }}").contains("a width above"));
    for source in [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    ] {
        assert!(refusal(source).contains("recursion limit"), "{source}");
    }
}

/// A template that sets `n.x` to something sixty times and then uses it.
fn rounds(what: &str, used: &str) -> String {
    format!("{{% set n = namespace(x=['x']) %}}{{% for i in range(60) %}}{{% set n.x = {what} %}}{{% endfor %}}{used}")
}

#[test]
fn what_a_template_makes_is_bounded() {
    for source in [
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 9999999999999 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ 'x\\ny' | indent(999999999) }}",
        "{{ ('x' * 9999).replace('x', 'y' * 99999) }}",
        "{{ range(99999) | list | join('y' * 99999) }}",
        "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(l=[], t='x' * 9999) %}{% for i in range(9999) %}{% set n.l = n.l + [n.t] %}{% endfor %}\
         {{ n.l | string }}",
        "{% set n = namespace(l=[], t='x' * 9999) %}{% for i in range(9999) %}{% set n.l = n.l + [n.t] %}{% endfor %}\
         {{ n.l | tojson }}",
        "{% set n = namespace(l=[], t='x' * 9999) %}{% for i in range(9999) %}{% set n.l = n.l + [n.t] %}{% endfor %}\
         {{ '{}'.format(n.l) }}",
    ] {
        assert!(refusal(source).contains("out of fuel"), "{source}");
    }
}

#[test]
fn what_can_not_be_counted_is_refused_before_it_is_used() {
    for (source, words) in [
        (rounds("n.x + n.x", ""), "joins lists"),
        ("{% set a = messages + messages %}{% set b = a + a %}".to_owned(), "joins lists"),
        (rounds("[n.x, n.x]", ""), "without end"),
        (rounds("{'a': n.x, 'b': n.x}", ""), "without end"),
        ("{% macro m(x) %}{{ m([x, x]) }}{% endmacro %}{{ m(1) }}".to_owned(), "without end"),
        ("{% for x in messages recursive %}{{ loop([[messages]]) }}{% endfor %}".to_owned(), "goes down"),
        (
            "{% for i in range(9) %}{% set x = loop.previtem %}{% endfor %}".to_owned()
                + &rounds("[n.x] | map('batch', 1) | list", ""),
            "without end",
        ),
        ("{% macro m(x) %}{{ n.f([x]) }}{% endmacro %}{% set n = namespace(f=m) %}".to_owned(), "without end"),
        ("{% macro m(x) %}{{ f([x]) }}{% endmacro %}{% set f = m %}".to_owned(), "without end"),
        (
            rounds("n.x", "{% for a in [n.x, n.x] %}{% set n.x = [loop.previtem, loop.previtem] %}{% endfor %}"),
            "without end",
        ),
        (rounds("[n.x, n.x] | sum(start=[])", ""), "by `sum`"),
        ("{{ messages | map(messages[0].content) | list }}".to_owned(), "whose name is not written"),
        ("{{ [1] * 999 }}".to_owned(), "repeats a list"),
        ("\n{{ messages ~ '' }}".to_owned(), "by `~`, which can exhaust memory (line 2"),
        ("{{ messages | trim }}".to_owned(), "by `trim`"),
        ("{{ [messages] | join }}".to_owned(), "by `join`"),
        ("{{ [messages] | map('upper') | list }}".to_owned(), "by `map`"),
        ("{% if messages == messages %}{% endif %}".to_owned(), "compares"),
        ("{% if messages in [messages] %}{% endif %}".to_owned(), "compares"),
    ] {
        let told = ChatTemplate::new(Some(&source), "", "").unwrap_err();
        assert!(told.contains(words), "{source}: {told}");
    }
    for source in [
        rounds("n.x + ['y']", "{{ n.x | length }}"),
        "{% set system = messages[0].content %}{% set rest = messages[1:] %}{{ system ~ (rest | length) }}".to_owned(),
        "{% set all = [{'role': 'system', 'content': 'x'}] + messages %}{{ all[0].content ~ all[1]['role'] }}"
            .to_owned(),
        "{{ messages | map(attribute='content') | join(', ') }}{{ 'x' in ['x', 'y'] }}".to_owned(),
        "{% set names = {'user': 'U'} %}{{ names[messages[0].role] ~ ': ' }}".to_owned(),
        "{% for key, value in {'a': 'b'}.items() %}{{ key ~ value }}{% endfor %}".to_owned(),
    ] {
        ChatTemplate::new(Some(&source), "", "").unwrap().render(&[turn("user", "hi")]).unwrap();
    }
}

#[test]
fn neither_deep_sources_nor_deep_values_overflow_a_stack() {
    let most = LONGEST - 100;
    let deep = |open: &str, inner: &str, close: &str| {
        let times = most / (open.len() + close.len());
        open.repeat(times) + inner + &close.repeat(times)
    };
    for source in [
        format!("{{{{ {}1 }}}}", deep("-", "", "")),
        format!("{{{{ messages{} }}}}", deep(".a", "", "")),
        format!("{{{{ x{} }}}}", deep(" if y else z", "", "")),
        format!("{{% if x %}}{}{{% endif %}}", deep("{% elif x %}", "", "")),
        deep("{% if x %}", "", "{% endif %}"),
        deep("{{ [", "1", "] }}"),
    ] {
        // Rendered or refused: both is told on this side of the stack's end.
        let _told = ChatTemplate::new(Some(&source), "", "").map(|template| template.render(&[turn("user", "hi")]));
    }
    let split =
        "{% set n = namespace(x='a') %}{% for i in range(9000) %}{% set n.x = n.x | batch(1) | list %}{% endfor %}";
    assert!(refusal(split).contains("without end"));
    assert!(ChatTemplate::new(Some(&"x".repeat(LONGEST + 1)), "", "").unwrap_err().contains("are read at most"));
}

#[test]
fn long_conversations_have_what_they_need() {
    let source = "{% for m in messages %}{% if m.content.startswith('x') or m.content.endswith('y') %}{% endif %}\
        {{ '<|' ~ m.role ~ '|>' + (m.content | trim).split('</think>')[-1].lstrip('\\n') }}{% endfor %}";
    let template = ChatTemplate::new(Some(source), "", "").unwrap();
    let long = [turn("user", &"words ".repeat(200_000))];
    assert!(template.render(&long).unwrap().len() > 1_000_000);
    let many: Vec<ChatMessage> = (0..2_000).map(|at| turn("user", &format!("turn {at}"))).collect();
    assert!(template.render(&many).unwrap().ends_with("turn 1999"));
}
