//! What a llama-server can be told to do: slots, caches, drafts, formats, models.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Case, Outcome, by_answers, compared, two_calls};
use crate::agent::Agent;
use crate::assets::{Assets, Build};
use crate::client::Call;
use crate::comparison::{Count, Figure, Moment};
use crate::http;
use crate::launch::Launch;
use crate::router::Router;
use crate::scratch::Scratch;
use crate::server::{LlamaServer, free_address};
use crate::tls::Identity;
use crate::traffic::{Fate, Request, finishing, mix, prompt, run, run_checked};

/// A mode of a server.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// What it is called.
    pub name: &'static str,
    /// The builds that it is tried with.
    pub builds: &'static [Build],
    model: Model,
    /// Options of the server; `{tiny}`, `{lora}` and `{scratch}` are replaced.
    options: &'static str,
    work: Work,
}

/// Which model is served.
#[derive(Clone, Copy, Debug)]
enum Model {
    Tiny,
    Fast,
    Bert,
    Mamba,
    Experts,
    Gemma3,
    Gemma,
}

/// What is done with it.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Requests that finish, fail, and are cut, and those that finish.
    Mixed,
    /// Requests that finish.
    Finishing,
    /// As many short requests as this, from as many clients as slots.
    Crowd(usize, usize),
    /// Requests by a function of their number, from some clients.
    Requests(usize, usize, fn(usize) -> Request),
    /// Whatever the function does.
    Own(fn(&LlamaServer) -> Result<()>),
    /// The server sleeps between requests: its figures are those of its answers.
    Sleeping,
    /// It listens elsewhere.
    Reached(fn(Launch, &Scratch) -> Result<Launch>),
    /// It starts servers of its own.
    Routed,
}

const NEW: &[Build] = &[Build::Process];
const BOTH: &[Build] = &Build::WHEELS;
const TLS: &[Build] = &[Build::Monolith];

const fn mode(
    name: &'static str,
    builds: &'static [Build],
    model: Model,
    options: &'static str,
    work: Work,
) -> Mode {
    Mode { name, builds, model, options, work }
}

/// The modes.
pub const MODES: &[Mode] = &[
    mode("1 slot", BOTH, Model::Tiny, "-np 1 -c 16384", Work::Mixed),
    mode("4 slots, unified", BOTH, Model::Tiny, "-np 4 -c 16384 -kvu", Work::Finishing),
    mode("4 slots, split", BOTH, Model::Tiny, "-np 4 -c 16384 -no-kvu", Work::Mixed),
    mode("16 slots, unified", NEW, Model::Tiny, "-np 16 -c 32768 -kvu", Work::Crowd(128, 16)),
    mode("16 slots, split", BOTH, Model::Tiny, "-np 16 -c 32768 -no-kvu", Work::Crowd(128, 16)),
    mode("64 slots", NEW, Model::Tiny, "-np 64 -c 65536 -no-kvu", Work::Crowd(512, 64)),
    mode("slots as the server sees fit", BOTH, Model::Tiny, "-c 16384", Work::Finishing),
    mode("a context too small for all", NEW, Model::Tiny, "-np 4 -c 640 -kvu", Work::Own(too_small)),
    mode(
        "drafts of a model",
        BOTH,
        Model::Tiny,
        "-np 4 -c 8192 -md {tiny} --spec-type draft-simple",
        Work::Requests(12, 4, |index| Request::completion(&prompt(20, index), 40, index % 2 == 0)),
    ),
    mode(
        "drafts of n-grams",
        BOTH,
        Model::Tiny,
        "-np 2 -c 8192 --spec-type ngram-simple --spec-ngram-simple-size-n 2",
        Work::Requests(8, 2, repetitive),
    ),
    mode("embeddings, bert", BOTH, Model::Bert, "--embedding -np 2 -c 1024", Work::Requests(8, 4, embedded)),
    mode(
        "embeddings, pooled",
        BOTH,
        Model::Tiny,
        "--embedding --pooling mean -np 2 -c 2048",
        Work::Requests(8, 4, embedded),
    ),
    mode("rerank", BOTH, Model::Bert, "--rerank -np 2 -c 1024", Work::Requests(6, 2, ranked)),
    mode("a grammar", BOTH, Model::Tiny, "-np 2 -c 4096", Work::Requests(6, 2, by_grammar)),
    mode("a schema", BOTH, Model::Tiny, "-np 2 -c 4096", Work::Requests(6, 2, by_schema)),
    mode("arrays of prompts", BOTH, Model::Tiny, "-np 4 -c 8192", Work::Own(arrays)),
    // The older build counts the prompt for each choice, and computes it once.
    mode("several choices", NEW, Model::Tiny, "-np 4 -c 8192", Work::Own(choices)),
    mode(
        "context shift",
        BOTH,
        Model::Tiny,
        "-np 2 -c 512 -no-kvu --context-shift",
        Work::Requests(4, 2, |index| Request::completion(&prompt(20, index), 700, false)),
    ),
    mode(
        "slots saved and restored",
        BOTH,
        Model::Tiny,
        "-np 2 -c 4096 --slot-save-path {scratch}/",
        Work::Own(saved),
    ),
    mode(
        "prompts cached in memory",
        BOTH,
        Model::Tiny,
        "-np 1 -c 4096 --cache-ram 64",
        Work::Requests(12, 1, |index| Request::completion(&prompt(400, index % 3), 5, false)),
    ),
    mode(
        "chunks of prompts reused",
        NEW,
        Model::Tiny,
        "-np 1 -c 4096 --cache-reuse 16",
        Work::Requests(8, 1, |index| Request::completion(&prompt(300 - index * 20, 3), 5, false)),
    ),
    mode("sleep", NEW, Model::Tiny, "-np 2 -c 4096 --sleep-idle-seconds 1", Work::Sleeping),
    mode("LoRA", BOTH, Model::Tiny, "-np 4 -c 8192 --lora {lora}", Work::Requests(12, 4, with_lora)),
    mode("a cache of 32 bits", BOTH, Model::Tiny, "-np 2 -c 4096 -ctk f32 -ctv f32", Work::Finishing),
    mode("small batches", BOTH, Model::Tiny, "-np 4 -c 16384 -b 64 -ub 32", Work::Finishing),
    mode("a router", NEW, Model::Tiny, "", Work::Routed),
    mode(
        "a list of hosts",
        NEW,
        Model::Tiny,
        "-np 2 -c 4096",
        Work::Reached(|launch, scratch| {
            Ok(launch.over_unix(scratch.path().join("llama.sock")).also_at(free_address()?))
        }),
    ),
    mode(
        "a unix socket",
        BOTH,
        Model::Tiny,
        "-np 2 -c 4096",
        Work::Reached(|launch, scratch| Ok(launch.over_unix(scratch.path().join("llama.sock")))),
    ),
    mode(
        "TLS",
        TLS,
        Model::Tiny,
        "-np 2 -c 4096",
        Work::Reached(|launch, _| Ok(launch.over_tls(&Identity::new()?))),
    ),
    mode(
        "a prefix",
        BOTH,
        Model::Tiny,
        "-np 2 -c 4096",
        Work::Reached(|launch, _| Ok(launch.below("/team/llm"))),
    ),
    mode("a state space model", BOTH, Model::Mamba, "-np 4 -c 16384", Work::Finishing),
    mode("a mixture of experts", BOTH, Model::Experts, "-np 4 -c 16384", Work::Finishing),
    mode("gemma3", BOTH, Model::Gemma3, "-np 4 -c 16384", Work::Finishing),
    mode("the fastest model", BOTH, Model::Fast, "-np 4 -c 16384", Work::Finishing),
    mode(
        "a real model",
        BOTH,
        Model::Gemma,
        "-np 2 -c 4096 -t 2",
        Work::Requests(4, 2, |index| Request::chat("Say something short.", 16, index % 2 == 0)),
    ),
];

impl Mode {
    /// A case for each of its builds.
    pub(super) fn cases(&'static self, assets: &Assets) -> Vec<Case> {
        let one = |&build: &Build| {
            let mut needs = vec![assets.llama_server(build), self.model.file(assets)];
            needs.extend(self.options.contains("{lora}").then(|| assets.lora()));
            Case {
                table: "modes",
                name: format!("{}, {}", self.name, build.name()),
                needs,
                trial: Box::new(move |assets| self.run(build, assets)),
            }
        };
        self.builds.iter().map(one).collect()
    }

    fn run(&self, build: Build, assets: &Assets) -> Result<Outcome> {
        let scratch = Scratch::new()?;
        let options = self.options.replace("{tiny}", &assets.tiny().to_string_lossy());
        let options = options.replace("{lora}", &assets.lora().to_string_lossy());
        let options = options.replace("{scratch}", &scratch.path().to_string_lossy());
        let mut options: Vec<&str> = options.split_whitespace().collect();
        if !options.contains(&"-t") {
            options.extend(["-t", "1"]);
        }
        let launch = Launch::new(build, &self.model.file(assets), &options)?;
        match self.work {
            Work::Routed => return routed(assets),
            Work::Reached(how) => return reached(&how(launch, &scratch)?.start()?),
            Work::Sleeping => return sleeping(&launch.start()?),
            _ => {}
        }
        let server = launch.start()?;
        let agent = observing(&server)?;
        let before = Moment::now(&agent, &server)?;
        let address = server.address();
        let mut prompt_of_answers = 0;
        match self.work {
            Work::Mixed => {
                // An older build forgets what a request had generated whose client went.
                let whole = |it: &Request| build == Build::Process || it.fate.is_answered();
                let requests: Vec<_> = mix(48).into_iter().filter(whole).collect();
                drop(run_checked(address, &requests, 4)?);
            }
            Work::Finishing => drop(run_checked(address, &finishing(24), 8)?),
            Work::Crowd(count, clients) => {
                const LENGTHS: [usize; 6] = [3, 13, 40, 79, 157, 400];
                let request =
                    |index: usize| Request::exact(LENGTHS[index % 6], 1 + (index % 5) as u32, index);
                drop(run_checked(address, &(0..count).map(request).collect::<Vec<_>>(), clients)?);
            }
            Work::Requests(count, clients, request) => {
                let outcomes = run(address, &(0..count).map(request).collect::<Vec<_>>(), clients)?;
                for outcome in &outcomes {
                    let reply = outcome.reply.as_ref().filter(|reply| reply.status == 200);
                    let documents = reply.with_context(|| format!("{outcome:?}"))?.documents();
                    let said = |it: &Value| it.pointer("/usage/prompt_tokens").and_then(Value::as_u64);
                    prompt_of_answers += documents.iter().filter_map(said).sum::<u64>();
                }
            }
            Work::Own(work) => work(&server)?,
            Work::Reached(_) | Work::Routed | Work::Sleeping => {}
        }
        let mut counts = compared(&before, &agent, &server)?;
        // Up to about b10306 the server did not count the prompts of embeddings; its answers say them.
        for count in counts.iter_mut().filter(|it| it.name == Figure::Prompt.name() && it.server == Some(0.0))
        {
            count.server = Some(prompt_of_answers as f64);
        }
        if let Some(drafted) = server.metrics()?.value("llamacpp:spec_decode_num_draft_tokens_total") {
            let told = agent.scrape()?.sum("llm_draft_tokens_total", &[("server", &server.label())]);
            counts.extend((drafted > 0.0).then(|| Count::of_both("draft tokens", told, drafted)));
        }
        agent.stop()?;
        Ok(Outcome::Counted(counts))
    }
}

impl Model {
    fn file(self, assets: &Assets) -> std::path::PathBuf {
        match self {
            Self::Tiny => assets.tiny(),
            Self::Fast => assets.fast(),
            Self::Bert => assets.bert(),
            Self::Mamba => assets.mamba(),
            Self::Experts => assets.experts(),
            Self::Gemma3 => assets.tiny_gemma3(),
            Self::Gemma => assets.gemma(),
        }
    }
}

fn observing(server: &LlamaServer) -> Result<Agent> {
    let agent = Agent::start(&["--pid", &server.pid().to_string()])?;
    agent.wait_observed(server)?;
    Ok(agent)
}

fn post(path: &'static str, body: &Value) -> Request {
    Request { path, body: body.to_string(), fate: Fate::Finished }
}

fn repetitive(index: usize) -> Request {
    let text = format!("{} ", prompt(12, index)).repeat(6);
    Request::completion(&text, 60, index.is_multiple_of(2))
}

fn embedded(index: usize) -> Request {
    let texts: Vec<_> = (0..1 + index % 3).map(|more| prompt(10 + index * 7 + more, index)).collect();
    post("/v1/embeddings", &json!({"input": texts}))
}

fn ranked(index: usize) -> Request {
    let documents: Vec<_> = (0..3).map(|more| prompt(8 + more * 5, index + more)).collect();
    post("/v1/rerank", &json!({"query": prompt(5, index), "documents": documents}))
}

fn by_grammar(index: usize) -> Request {
    let grammar = "root ::= (\"ab\" | \"cd\") (\" \" (\"ab\" | \"cd\"))*";
    post("/completion", &json!({"prompt": prompt(9, index), "n_predict": 20, "grammar": grammar}))
}

fn by_schema(index: usize) -> Request {
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
                        "required": ["a", "b"]});
    post("/completion", &json!({"prompt": prompt(9, index), "n_predict": 60, "json_schema": schema}))
}

fn with_lora(index: usize) -> Request {
    let scale = [0.0, 0.5, 1.0][index % 3];
    let lora = json!([{"id": 0, "scale": scale}]);
    post(
        "/completion",
        &json!({"prompt": prompt(30, index), "n_predict": 15, "ignore_eos": true, "lora": lora}),
    )
}

fn answered(server: &LlamaServer, path: &'static str, body: &Value) -> Result<()> {
    let reply = http::post(server.endpoint(), path, body)?;
    ensure!(reply.status == 200, "{path}: {reply:?}");
    Ok(())
}

fn arrays(server: &LlamaServer) -> Result<()> {
    for count in [2, 7, 60] {
        let prompts: Vec<_> = (0..count).map(|index| format!("text {index}")).collect();
        answered(server, "/completion", &json!({"prompt": prompts, "n_predict": 3, "ignore_eos": true}))?;
    }
    Ok(())
}

fn choices(server: &LlamaServer) -> Result<()> {
    for (n, stream) in [(2, false), (4, false), (3, true)] {
        let body =
            json!({"prompt": prompt(20, n), "n": n, "max_tokens": 12, "ignore_eos": true, "stream": stream});
        answered(server, "/v1/completions", &body)?;
    }
    Ok(())
}

/// Some fail, since there is no room for all.
fn too_small(server: &LlamaServer) -> Result<()> {
    let request = |index| Request::completion(&prompt(180 + index * 7, index), 20, false);
    let outcomes = run(server.address(), &(0..24).map(request).collect::<Vec<_>>(), 4)?;
    let failed = |status| outcomes.iter().filter_map(|it| it.reply.as_ref()).any(|it| it.status == status);
    ensure!(failed(500), "the context was large enough");
    Ok(())
}

fn saved(server: &LlamaServer) -> Result<()> {
    let ask = |slot: u32, words| {
        let body = json!({"prompt": prompt(words, 7), "n_predict": 3, "id_slot": slot, "ignore_eos": true});
        answered(server, "/completion", &body)
    };
    let act = |path| answered(server, path, &json!({"filename": "saved"}));
    ask(0, 40)?;
    act("/slots/0?action=save")?;
    act("/slots/1?action=restore")?;
    ask(1, 60)?;
    act("/slots/0?action=erase")?;
    ask(0, 40)
}

fn reached(server: &LlamaServer) -> Result<Outcome> {
    let agent = observing(server)?;
    let before = Moment::now(&agent, server)?;
    // A static path, as requests have it.
    let path = if server.path("").is_empty() { "/completion" } else { "/team/llm/completion" };
    two_calls(path, server)?;
    let counts = compared(&before, &agent, server)?;
    agent.stop()?;
    Ok(Outcome::Counted(counts))
}

fn sleeping(server: &LlamaServer) -> Result<Outcome> {
    let agent = observing(server)?;
    let mut said = Vec::new();
    for _ in 0..2 {
        said.extend(two_calls("/completion", server)?);
        agent.wait_metrics("sleep", |it| (it.sum("llm_context_size_tokens", &[]) == 0.0).then_some(()))?;
    }
    let counts = by_answers(&agent, &[server.label()], &said)?;
    agent.stop()?;
    Ok(Outcome::Counted(counts))
}

/// Requests count where they run, and once.
fn routed(assets: &Assets) -> Result<Outcome> {
    let router = Router::start(assets)?;
    let call = |model: &str, stream| {
        let messages = json!([{"role": "user", "content": "a b"}]);
        let body = json!({"model": model, "messages": messages, "max_tokens": 9, "ignore_eos": true,
                          "stream": stream});
        let answer = Call::post("/v1/chat/completions", &body).send(router.address(), &mut None)?;
        ensure!(answer.status() == Some(200), "{answer:?}");
        answer.tokens.context("no figures in the answer")
    };
    // The first request of each makes the router start its server.
    for model in Router::MODELS {
        call(model, false)?;
    }
    let servers: Vec<String> = router.servers()?.into_iter().collect();
    let agent = Agent::start(&[])?;
    agent.wait_metrics("the servers", |it| {
        servers.iter().all(|server| it.mentions("server", server)).then_some(())
    })?;
    let mut said = Vec::new();
    for (model, stream) in Router::MODELS.iter().flat_map(|model| [(model, false), (model, true)]) {
        said.push(call(model, stream)?);
    }
    let counts = by_answers(&agent, &servers, &said)?;
    agent.stop()?;
    Ok(Outcome::Counted(counts))
}
