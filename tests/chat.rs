//! Chat templates: byte for byte what Python's jinja2 renders (tests/data/chat_templates.json, made by tools/chat_oracle.py).
#![cfg(feature = "chat")]

use loci::Error;
use loci::gguf::{Gguf, Writer};
use loci::tokenizer::chat::{ChatTemplate, FUEL, Message, OUTPUT_BYTES_MAX, RenderOptions};
use proptest::prelude::*;
use serde_json::{Value, json};

fn data() -> Value {
    serde_json::from_str(include_str!("data/chat_templates.json")).unwrap()
}

#[test]
fn families() {
    let data = data();
    let cases = data["cases"].as_array().unwrap();
    let mut bad = 0;
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let mut variables = case["variables"].clone();
        variables["messages"] = data["conversations"][case["conversation"].as_str().unwrap()].clone();
        variables["tools"] = if case["tools"] == true { data["tools"].clone() } else { Value::Null };
        let mut options = RenderOptions { now: data["now"].as_i64(), ..RenderOptions::default() };
        options.extra = variables.as_object().unwrap().clone();
        let template = ChatTemplate::new(data["templates"][name].as_str().unwrap(), "", "").unwrap();
        let got = template.render(&[], &options);
        if got.as_ref().ok().map(String::as_str) != case["expected"].as_str() {
            bad += 1;
            println!("{name} {}\n got      {got:?}\n expected {:?}", case["conversation"], case["expected"]);
        }
    }
    assert_eq!(bad, 0, "of {}", cases.len());
}

#[test]
fn snippets() {
    let data = data();
    let snippets = data["snippets"].as_array().unwrap();
    let mut bad = 0;
    for case in snippets {
        let source = case["source"].as_str().unwrap();
        let options =
            RenderOptions { extra: data["variables"].as_object().unwrap().clone(), now: data["now"].as_i64(), ..RenderOptions::default() };
        let got = ChatTemplate::new(source, "", "").and_then(|t| t.render(&[], &options));
        if got.as_ref().ok().map(String::as_str) != case["expected"].as_str() {
            bad += 1;
            println!("{source}\n  got      {got:?}\n  expected {}", case["expected"]);
        }
    }
    assert_eq!(bad, 0, "of {}", snippets.len());
}

fn model(name: &str) -> std::path::PathBuf {
    let root =
        std::env::var_os("LOCI_MODELS_DIR").map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/models").into(), std::path::PathBuf::from);
    let path = root.join(name);
    assert!(path.exists(), "{} is missing: run `make test`, which fetches the models, or set LOCI_MODELS_DIR", path.display());
    path
}

fn conversation() -> Vec<Message> {
    vec![Message::new("user", "Hi"), Message::new("assistant", "Hello."), Message::new("user", "Bye — é")]
}

/// What SmolLM2's template renders is in the expectations as its family (ChatML with a system turn put in front).
#[test]
fn the_models_own_templates() {
    let gguf = Gguf::open(&model("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, None, "<|im_start|>", "<|im_end|>").unwrap();
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
    let rest = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye — é<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(template.render(&conversation(), &options).unwrap(), format!("{system}{rest}"));
    assert_eq!(ChatTemplate::variants(&gguf), Vec::<&str>::new());

    // A base model: no template. The error says what to do, and the built-in one serves.
    let gguf = Gguf::open(&model("gemma-3-270m-Q4_K_M.gguf")).unwrap();
    match ChatTemplate::from_gguf(&gguf, None, "<bos>", "<eos>") {
        Err(Error::Unsupported(what)) => assert!(what.contains("tokenizer.chat_template") && what.contains("ChatML"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(ChatTemplate::chatml().unwrap().render(&conversation(), &options).unwrap(), rest);
}

#[test]
fn named_variants() {
    let mut writer = Writer::new();
    writer.str("tokenizer.chat_template", "default");
    writer.str("tokenizer.chat_template.tool_use", "{{ messages|length }} with tools");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("variants.gguf");
    std::fs::write(&path, writer.to_bytes().unwrap()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(ChatTemplate::variants(&gguf), ["tool_use"]);
    let render =
        |variant| ChatTemplate::from_gguf(&gguf, variant, "", "").and_then(|t| t.render(&conversation(), &RenderOptions::default()));
    assert_eq!(render(None).unwrap(), "default");
    assert_eq!(render(Some("tool_use")).unwrap(), "3 with tools");
    assert!(matches!(render(Some("rag")), Err(Error::Unsupported(what)) if what.contains("tool_use")));
}

#[test]
fn messages_and_options_arrive_as_transformers_gives_them() {
    let template = ChatTemplate::new(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m['content'] }};{% endfor %}{{ tools is none }}{{ documents is none }}\
         {{ add_generation_prompt }}{{ enable_thinking }}{{ eos_token is defined }}",
        "<s>",
        "",
    )
    .unwrap();
    let mut options = RenderOptions::default();
    options.extra.insert("enable_thinking".into(), json!(false));
    assert_eq!(template.render(&conversation(), &options).unwrap(), "<s>user:Hi;assistant:Hello.;user:Bye — é;TrueTrueFalseFalseFalse");
    options.tools = Some(json!([]));
    options.extra.insert("bos_token".into(), json!("<other>"));
    assert!(template.render(&[], &options).unwrap().starts_with("<other>FalseTrue"));
    // By JSON nothing is there but what was given, and the special tokens.
    let template = ChatTemplate::new("{{ tools is defined }}{{ messages[0].x }}{{ bos_token }}", "<s>", "").unwrap();
    assert_eq!(template.render_json(&json!({"messages": [{"x": 1.0}]})).unwrap(), "False1.0<s>");
    assert!(matches!(template.render_json(&json!([])), Err(Error::Argument { name: "variables", .. })));
}

#[test]
fn errors_name_the_line_and_the_reason() {
    let text = |source: &str| match ChatTemplate::new(source, "", "").and_then(|t| t.render(&conversation(), &RenderOptions::default())) {
        Err(error) => error.to_string(),
        Ok(text) => panic!("rendered {text:?}"),
    };
    assert!(text("a\nb\n{% if %}").contains("line 3"));
    assert!(text("a\n\n\n{{ messages.x.y }}").contains("line 4"));
    let late = text("{%- generation -%}\n{{ messages[1:\n] }}\n{% endgeneration %}\n{{ nope() }}");
    assert!(late.contains("line 5"), "{late}");
    assert!(text("{% macro m() %}\n{{ 1 / 0 }}\n{% endmacro %}\n\n{{ m() }}").contains("line 2"));
    let raised = ChatTemplate::new("{% macro m() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ m() }}", "", "").unwrap();
    match raised.render(&[], &RenderOptions::default()) {
        Err(Error::Argument { name: "messages", found, .. }) => assert_eq!(found, "roles must alternate"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(ChatTemplate::new("{% endfor %}", "", ""), Err(Error::Model { .. })));
}

/// Loops without end, recursion, huge outputs, long and deep expressions: an error each, on a test's 2 MiB stack.
#[test]
fn hostile_templates_end() {
    let run = |source: &str| ChatTemplate::new(source, "", "").and_then(|t| t.render(&[], &RenderOptions::default()));
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = b %}{% endfor %}{% endfor %}",
    ] {
        assert!(matches!(run(source), Err(Error::Limit { limit: FUEL, .. })), "{source}");
    }
    for source in ["{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}", "{{ '%99999999d'|format(1) }}"] {
        assert!(matches!(run(source), Err(Error::Limit { limit, .. }) if limit == OUTPUT_BYTES_MAX as u64), "{source}");
    }
    for source in [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 10000000000 }}",
        "{{ range(1000000000)|list }}",
        "{{ 'x'.center(1000000000) }}",
    ] {
        assert!(matches!(run(source), Err(Error::Model { .. })), "{source}");
    }
    assert_eq!(run("{% raw %}{% {{ {%- endraw2 %}{%endraw -%} x").unwrap(), "{% {{ {%- endraw2 %}x");
    let n = 100_000;
    let chains = [
        ("", "not ", "1", ""),
        ("", "-", "1", ""),
        ("", "(", "1", ")"),
        ("", "[", "1", "]"),
        ("", "{1:", "1", "}"),
        ("1", "", "", "+1"),
        ("1", "", "", "~1"),
        ("x", "", "", ".a"),
        ("x", "", "", "|string"),
        ("x", "", "", "[1:2]"),
        ("x", "", "", "()"),
        ("1", "", "", " and 1"),
        ("1", "", "", " if 1 else 1"),
        ("1", "", "", "**1"),
        ("1", "", "", " is defined"),
    ];
    for (first, before, middle, after) in chains {
        let expression = format!("{first}{}{middle}{}", before.repeat(n), after.repeat(n));
        for source in [format!("{{{{ {expression} }}}}"), format!("a\n{{% if {expression} %}}{{% endif %}}")] {
            assert!(matches!(run(&source), Err(Error::Model { .. })), "{before}{after}");
        }
    }
    for tags in ["{% if 1 %}", "{% for x in [1] %}", "{% if 1 %}{% endif %}{% elif 1 %}"] {
        assert!(matches!(run(&tags.repeat(n)), Err(Error::Model { .. })), "{tags}");
    }
    assert!(matches!(run(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(n))), Err(Error::Model { .. })));
    // Long is not deep: a table of many entries is fine.
    let table = format!("{{% set t = {{{}}} %}}{{{{ t|length }}}}", (0..5000).map(|i| format!("'k{i}': [{i}, -{i}],")).collect::<String>());
    assert_eq!(run(&table).unwrap(), "5000");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Pieces of templates in any order: text or an error, never a panic.
    #[test]
    fn scrambled_templates(parts in prop::collection::vec(prop::sample::select(PIECES), 0..24)) {
        let source: String = parts.concat();
        if let Ok(template) = ChatTemplate::new(&source, "<s>", "") {
            let options = RenderOptions { extra: json!({"l": [3, 1, 2], "d": {"a": 1}, "s": "é x"}).as_object().unwrap().clone(), ..RenderOptions::default() };
            if let Err(error) = template.render(&conversation(), &options) {
                prop_assert!(!matches!(error, Error::Unsupported(_)), "{source}: {error}");
            }
        }
    }
}

const PIECES: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{%-",
    "-%}",
    "{{-",
    "-}}",
    "{% if s %}",
    "{% endif %}",
    "{% else %}",
    "{% for x in l %}",
    "{% endfor %}",
    "{{ x }}",
    "{{ l[::-1] }}",
    "{{ s[",
    ":",
    "]",
    "[",
    "(",
    ")",
    "{",
    "}",
    "'",
    "\"",
    "\\",
    "\n",
    "\r\n",
    " ",
    "é",
    "{% raw %}",
    "{% endraw %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% set x = ",
    "s",
    "l",
    "d",
    "1",
    "-1",
    "|tojson",
    "|length",
    ".items()",
    ".split(",
    "|join",
    "~",
    "+",
    ",",
    "none",
    "{% break %}",
    "{% continue %}",
    "{% macro m(x) %}",
    "{% endmacro %}",
    "m(1)",
    "|int",
    "|replace('x', ",
    "**",
    "//",
    "%",
    "0",
    "99999999999",
    "if",
    "else",
    " is defined",
    ".strip(",
    "|batch(",
    "|indent(",
    "|round(",
    "|slice(",
    ".center(",
    ".format(",
    "'%",
    "{:",
    "d'",
];
