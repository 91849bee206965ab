use super::*;

fn told(line: &str, variables: &[(&str, &str)]) -> Told {
    let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
    Told::read(&arguments, |name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

fn name(line: &str) -> Option<String> {
    told(line, &[]).name
}

#[test]
fn the_name_is_what_the_server_answers_with() {
    for (line, expected) in [
        ("llama-server -m /hub/snapshots/ab/Tiny-Q4_K_M.gguf", "Tiny-Q4_K_M.gguf"),
        ("/app/llama-server --model=b.gguf", "b.gguf"),
        ("llama-server -m a.gguf --model b.gguf", "b.gguf"),
        ("llama-server -m a.gguf -a mine", "mine"),
        ("llama-server -m a.gguf -a zeta,beta -a gamma", "beta"),
        ("llama-server -m a.gguf --alias ,", "a.gguf"),
        ("llama-server -hf acme/Tiny-GGUF:Q4_K_M", "acme/Tiny-GGUF:Q4_K_M"),
        ("llama-server --hf_repo acme/Tiny-GGUF --hf-file t.gguf", "acme/Tiny-GGUF"),
        ("llama-server -dr ai/gemma3 -md small.gguf", "ai/gemma3"),
        ("llama-server -mu https://host/x/model.gguf?download=true#a", "model.gguf"),
        ("python -m llama_cpp.server --model /m/a.gguf", "a.gguf"),
        ("python3.12 -m llama_cpp.server --model /m/a.gguf --model_alias mine", "mine"),
    ] {
        assert_eq!(name(line).as_deref(), Some(expected), "{line}");
    }
    for line in
        ["llama-server", "python3 -m chat", "/usr/bin/node app.js -a all --model gpt", "llama-server -m", ""]
    {
        assert_eq!(name(line), None, "{line}");
    }
}

#[test]
fn the_environment_counts_where_arguments_say_nothing() {
    let from_variables = told(
        "llama-server",
        &[("LLAMA_ARG_MODEL", "/m/a.gguf"), ("LLAMA_ARG_PORT", "9000"), ("LLAMA_ARG_N_PARALLEL", "3")],
    );
    assert_eq!(from_variables.name.as_deref(), Some("a.gguf"));
    assert_eq!(from_variables.endpoint.as_deref(), Some("127.0.0.1:9000"));
    assert_eq!((from_variables.slots, from_variables.no_model), (Some(3), false));
    let both =
        told("llama-server -m b.gguf --port 1", &[("LLAMA_ARG_MODEL", "a"), ("LLAMA_ARG_PORT", "9000")]);
    assert_eq!((both.name.as_deref(), both.endpoint.as_deref()), (Some("b.gguf"), Some("127.0.0.1:1")));
    assert_eq!(told("llama-server -m b", &[("LLAMA_ARG_ALIAS", "one,two")]).name.as_deref(), Some("one"));
    assert_eq!(told("llama-server", &[("LLAMA_ARG_HF_REPO", "a/b")]).name.as_deref(), Some("a/b"));
    assert!(told("llama-server --models-dir /m", &[("LLAMA_ARG_MODEL", "")]).no_model);
    assert!(!told("llama-server --gpt-oss-20b-default", &[]).no_model);
    assert!(!told("my-server", &[]).no_model, "it may have a model of its own");
}

#[test]
fn where_it_will_listen() {
    for (line, expected) in [
        ("llama-server -m a", Some("127.0.0.1:8080")),
        ("llama-server -m a --host 0.0.0.0 --port 1", Some("0.0.0.0:1")),
        ("llama-server -m a --host localhost", Some("127.0.0.1:8080")),
        ("llama-server -m a --host ::1,0.0.0.0", Some("[::1]:8080")),
        ("llama-server -m a --host /run/l.sock", Some("unix:/run/l.sock")),
        ("llama serve -m a --port 2", Some("127.0.0.1:2")),
        ("python -m llama_cpp.server --port 3", None),
    ] {
        assert_eq!(told(line, &[]).endpoint.as_deref(), expected, "{line}");
    }
}

#[test]
fn predictions_have_a_route_of_their_own() {
    let mode = ("AIP_MODE", "PREDICTION");
    assert_eq!(told("llama-server", &[mode]).predict.as_deref(), Some("/predict"));
    let routed =
        told("llama-server --port 1", &[mode, ("AIP_PREDICT_ROUTE", "v1/x:predict"), ("AIP_HTTP_PORT", "7")]);
    assert_eq!(routed.predict.as_deref(), Some("/v1/x:predict"));
    assert_eq!(routed.endpoint.as_deref(), Some("127.0.0.1:7"));
    assert_eq!(told("llama-server", &[("AIP_PREDICT_ROUTE", "/p")]).predict, None);
}

#[test]
fn a_hash_is_nobodys_name() {
    let sha = "3f".repeat(32);
    for hash in [sha.clone(), format!("sha256-{sha}"), format!("sha256:{sha}"), "ab".repeat(20)] {
        assert!(is_hash(&hash), "{hash}");
    }
    for name in ["tiny.gguf", "sha256-3f", "model-3f", &format!("{sha}.gguf"), &format!("x-{sha}"), ""] {
        assert!(!is_hash(name), "{name}");
    }
    let model = |path: String, name: Option<&str>| {
        name_of_file(&Model {
            path: PathBuf::from(path),
            architecture: "llama".to_owned(),
            name: name.map(str::to_owned),
            kind: None,
            quantisation: "Q4_K_M".to_owned(),
            parameters: 1,
            context_train: None,
            forgets: false,
            splits: None,
            file_bytes: 1,
        })
        .unwrap()
    };
    assert_eq!(model("/m/tiny.gguf".to_owned(), Some("Tiny")), "tiny.gguf");
    assert_eq!(model(format!("/hub/models--acme--Tiny-GGUF/blobs/{sha}"), None), "acme/Tiny-GGUF:Q4_K_M");
    assert_eq!(model(format!("/home/ada/.ollama/models/blobs/sha256-{sha}"), Some("Tiny 1B")), "Tiny 1B");
    assert_eq!(model(format!("/blobs/{sha}"), None), sha);
}
