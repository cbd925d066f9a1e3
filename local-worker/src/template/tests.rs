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

#[test]
fn hostile_templates_end_soon_and_say_why() {
    let check = |source: &str| {
        let template = ChatTemplate::new(Some(source), "", "").unwrap();
        let told = template.render(&[turn("user", "hi")]).unwrap_err();
        assert!(!told.is_empty() && told.len() < 500, "{told}");
    };
    check("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}");
    check("{{ 'x' * 9999999999999 }}");
    check("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
    check("{{ [1] | tojson(indent=999999) }}");
    check("{{ messages[0].content.nothing.at_all }}");
    check("{{ unknown_function() }}");
    check("{{ strftime_now('%5') }}");
}
