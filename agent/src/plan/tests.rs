use std::path::Path;

use llamaprobe_common::cookie::BatchLayout;

use super::{report::ProcessReport, site::Stepping, *};
use crate::{
    discovery::{Target, image::ImageId},
    session::staged::process,
};

const DECODE_EXT: &str = "_ZN13llama_context6decodeERK15llama_batch_ext";
const DECODE: &str = "_ZN13llama_context6decodeERK11llama_batch";
const COMMON_SAMPLE: &str = "_Z21common_sampler_sampleP14common_samplerP13llama_contextib";
const GPT_SAMPLE: &str = "_Z18gpt_sampler_sampleP11gpt_samplerP13llama_contextib";
const SEQ_RM: &str = "llama_memory_seq_rm";

/// What libllama of late 2026 exports.
const CONTEXT_SIZE: &str = "_ZNK13llama_context5n_ctxEv";
const CONTEXT_SIZE_PER_SEQUENCE: &str = "_ZNK13llama_context9n_ctx_seqEv";
const LIBLLAMA: &[&str] = &[
    DECODE_EXT,
    DECODE,
    "llama_process",
    "llama_decode",
    "llama_sampler_sample",
    "llama_get_logits",
    "llama_get_logits_ith",
    "llama_get_sampled_token_ith",
    SEQ_RM,
    "llama_memory_seq_cp",
    "llama_set_sampler",
    CONTEXT_SIZE,
    "llama_n_ctx_seq",
    CONTEXT_SIZE_PER_SEQUENCE,
    "llama_synchronize",
    "llama_free",
    "llama_memory_clear",
    "llama_get_embeddings_seq",
    "_ZNK13llama_context10get_memoryEv",
    "llama_state_seq_set_data_ext",
];
const LIBCOMMON: &[&str] = &[
    COMMON_SAMPLE,
    "_ZNK13common_memory6seq_rmEiii",
    "_Z25common_speculative_acceptP18common_speculativeit",
];
const SERVER: &[&str] = &[
    "_ZN19server_context_impl13process_tokenER23completion_token_outputR11server_slot",
    "_ZN19server_context_impl21launch_slot_with_taskER11server_slotO11server_task",
    "_ZN11server_slot7releaseEv",
    "_ZN15server_response19add_waiting_task_idEi",
    "_ZN15server_response20add_waiting_task_idsERKSt13unordered_setIiSt4hashIiESt8equal_toIiESaIiEE",
    "_ZN19server_context_impl10send_errorERK11server_slotRKNSt7__cxx1112basic_stringIcEE10error_type",
];
/// A server of 2024: one file, C++ methods of libllama not among its symbols.
const OLD_SERVER: &[&str] = &[
    "_ZN14server_context13process_tokenER23completion_token_outputR11server_slot",
    "_ZN14server_context21launch_slot_with_taskER11server_slotRK11server_task",
    "_ZN11server_slot7releaseEv",
    "llama_decode",
    "llama_kv_cache_seq_rm",
    "llama_get_logits_ith",
    "llama_sampler_sample",
    "llama_n_ctx",
];

/// `test rdi, rdi; je; mov rax, [rdi]; jmp [rax+0x38]; nop; mov eax, 1; ret`: the code of [`SEQ_RM`] in b11434.
const SEQ_RM_CODE: &[u8] = &[
    0x48, 0x85, 0xff, 0x74, 0x0b, 0x48, 0x8b, 0x07, 0xff, 0x60, 0x38, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0xb8,
    0x01, 0x00, 0x00, 0x00, 0xc3,
];

/// The function number n begins at n * 0x1000.
fn image(inode: u64, path: &str, names: &[&[&str]]) -> Arc<Image> {
    let symbols = names.concat().into_iter().zip(1..).map(|(name, number)| {
        let code: &[u8] = match name {
            SEQ_RM => SEQ_RM_CODE,
            // mov eax, [rdi + 8]; ret
            "llama_n_ctx" | CONTEXT_SIZE => &[0x8b, 0x47, 0x08, 0xc3],
            CONTEXT_SIZE_PER_SEQUENCE => &[0x8b, 0x47, 0x0c, 0xc3],
            // mov rax, [rdi + 0x118]; ret
            "_ZNK13llama_context10get_memoryEv" => &[0x48, 0x8b, 0x87, 0x18, 0x01, 0, 0, 0xc3],
            // push r15; ret
            _ => &[0x41, 0x57, 0xc3],
        };
        Symbol {
            name: name.to_owned(),
            offset: number * 0x1000,
            size: code.len() as u64,
            code: code.to_vec(),
        }
    });
    Arc::new(Image {
        id: ImageId { device: 1, inode, size: 1, modified_ns: 0 },
        path: path.into(),
        build_id: None,
        machine: Machine::X86_64,
        symbols: symbols.collect(),
        imports: vec![],
        stripped: false,
    })
}

/// The plan once it is known who is a server.
fn observable(images: &[Arc<Image>]) -> Plan {
    let mut plan = undecided(images);
    plan.commit_to_server();
    plan
}

fn undecided(images: &[Arc<Image>]) -> Plan {
    match plan(images) {
        Verdict::Observable(plan) => plan,
        other => panic!("{other:?}"),
    }
}

/// Probes by name, in the order of the plan.
fn serving(plan: &Plan, role: Role) -> Vec<&'static str> {
    plan.probes.iter().filter(|probe| probe.role == role).map(|probe| probe.probe.name()).collect()
}

fn only(plan: &Plan, id: ProbeId) -> &Probe {
    let mut found = plan.probes.iter().filter(|probe| probe.probe == id);
    let first = found.next().unwrap();
    assert!(found.next().is_none(), "{} more than once", id.name());
    first
}

fn missing(plan: &Plan) -> Vec<Role> {
    plan.missing.iter().map(|missing| missing.role).collect()
}

#[test]
fn a_server_of_today() {
    let plan = observable(&[
        image(1, "libllama.so", &[LIBLLAMA]),
        image(2, "libllama-common.so", &[LIBCOMMON]),
        image(3, "libllama-server-impl.so", &[SERVER]),
    ]);
    let served = Role::MET.map(|role| serving(&plan, role));
    assert_eq!(
        served,
        [
            vec![],
            vec!["add_waiting_task_id", "add_waiting_task_ids"],
            vec!["llama_state_seq_set_data_ext"],
            vec!["launch_slot_with_task"],
            vec!["common_memory_seq_rm"],
            vec!["decode_ext"],
            vec!["common_sampler_sample"],
            vec!["common_speculative_accept"],
            vec!["process_token"],
            vec!["slot_error"],
            vec!["slot_release"],
            vec!["llama_free", "llama_memory_clear"],
        ],
        "the inner decode alone, the server's own token, the sampler only as the step's end"
    );
    assert_eq!((plan.missing.len(), plan.joining()), (0, Joining::Exact));
    assert_eq!(
        plan.flags,
        TargetConfig::SLOTS | TargetConfig::SLOT_TOKENS | TargetConfig::STEP_END | TargetConfig::HTTP
    );
    let decode = only(&plan, ProbeId::DecodeExt);
    assert_eq!((decode.symbol.as_str(), decode.image.path.as_path()), (DECODE_EXT, Path::new("libllama.so")));
    assert_eq!((decode.program, decode.cookie.batch_layout()), (Program::Batch, Some(BatchLayout::ExtArg1)));
    assert_eq!((decode.offset(), decode.site.stepping), (0x1000, Stepping::Emulated));
}

const SERVER_OF_TODAY: [&[&str]; 3] = [LIBLLAMA, LIBCOMMON, SERVER];
const LIBSSL: &[&str] = &["SSL_accept", "SSL_read", "SSL_write"];

#[test]
fn tls_is_looked_into_where_a_library_for_it_is_mapped() {
    let server = image(1, "llama-server", &SERVER_OF_TODAY);
    let plan = observable(&[server.clone(), image(2, "libssl.so.3", &[LIBSSL])]);
    assert_eq!(serving(&plan, Role::Tls), ["ssl_read", "ssl_write", "ssl_accept"]);
    assert_eq!(plan.missing, []);
    let read = only(&plan, ProbeId::SslRead);
    assert_eq!(
        (read.program.at_return(), read.program.is_for_one_process()),
        (Some("lp_tls_read_ret"), true)
    );
    assert_eq!(read.end, None, "this code has no guard of its stack");

    let half = observable(&[server.clone(), image(2, "libtls.so", &[&LIBSSL[..2]])]);
    assert_eq!((serving(&half, Role::Tls), half.missing), (vec![], vec![]), "half of a conversation is none");
    let binding = observable(&[image(1, "libllama.so", &[LIBLLAMA]), image(2, "libssl.so.3", &[LIBSSL])]);
    assert_eq!(serving(&binding, Role::Tls), [""; 0], "without a server nobody speaks");
}

#[test]
fn where_return_probes_are_forbidden_tls_is_missing() {
    let server = image(1, "llama-server", &SERVER_OF_TODAY);
    let images = [server.clone(), image(2, "libssl.so.3", &[LIBSSL])];
    let Verdict::Observable(plan) = plan(&images).without_return_probes(Some("why")) else { panic!() };
    assert_eq!((serving(&plan, Role::Tls), missing(&plan)), (vec![], vec![Role::Tls]));
    assert_eq!(plan.missing[0].why, "why");
    let Verdict::Observable(plain) = super::plan(&[server]).without_return_probes(Some("why")) else {
        panic!()
    };
    assert_eq!(plain.missing, [], "a server without TLS misses nothing");
}

#[test]
fn a_server_of_the_llama_decode_era() {
    let libllama = [DECODE, "llama_decode", SEQ_RM, "llama_get_logits_ith", "llama_n_ctx"];
    let plan = observable(&[
        image(1, "libllama.so", &[&libllama]),
        image(2, "llama-server", &[&OLD_SERVER[..3], &[COMMON_SAMPLE]]),
    ]);
    assert_eq!(serving(&plan, Role::Batch), ["decode_batch"]);
    assert_eq!(serving(&plan, Role::StepEnd), ["common_sampler_sample"]);
    assert_eq!(serving(&plan, Role::Token), ["process_token"]);
    assert_eq!(only(&plan, ProbeId::DecodeBatch).cookie.context_layout().total, Some(8));
    let cache = only(&plan, ProbeId::MemorySeqRm);
    assert_eq!(
        (cache.entry, cache.offset(), cache.site.instruction.to_string()),
        (0x3000, 0x3003, "je +0x10".to_owned())
    );
    assert_eq!(missing(&plan), [Role::Task], "requests cannot be joined by their tasks");
    assert_eq!(plan.joining(), Joining::Inferred);
}

/// A server of between the eras, whose executable is stripped: what it takes from the libraries is all it shows.
fn stripped_server(imports: &[&str]) -> [Arc<Image>; 3] {
    let libllama: Vec<_> = LIBLLAMA.iter().copied().filter(|name| *name != DECODE_EXT).collect();
    let mut executable = Arc::unwrap_or_clone(image(3, "llama-server", &[]));
    executable.imports = imports.iter().map(|&name| name.to_owned()).collect();
    let common = image(2, "libllama-common.so", &[&[COMMON_SAMPLE]]);
    [image(1, "libllama.so", &[&libllama]), common, Arc::new(executable)]
}

#[test]
fn slots_of_a_stripped_server_are_inferred_from_its_calls() {
    let plan = observable(&stripped_server(&["llama_decode", "llama_set_sampler"]));
    assert_eq!(serving(&plan, Role::SlotStart), ["llama_set_sampler", "llama_memory_seq_cp"]);
    assert_eq!(serving(&plan, Role::SlotEnd), ["llama_set_sampler"]);
    let [start, end] = [Role::SlotStart, Role::SlotEnd].map(|role| {
        plan.probes.iter().find(|probe| probe.role == role).map(|probe| (probe.program, probe.offset()))
    });
    assert_eq!(start, end, "one attachment is both");
    assert_eq!(serving(&plan, Role::CacheHit), ["llama_memory_seq_rm"]);
    let sampled = ["common_sampler_sample"];
    assert_eq!(
        (serving(&plan, Role::Token), serving(&plan, Role::StepEnd)),
        (sampled.into(), sampled.into())
    );
    let flags =
        TargetConfig::SLOTS | TargetConfig::INFERRED_SLOTS | TargetConfig::STEP_END | TargetConfig::HTTP;
    assert_eq!((plan.flags, plan.joining()), (flags, Joining::Inferred));
    assert_eq!(missing(&plan), [Role::Task]);
    assert!(plan.missing[0].why.contains("joined by order"), "{}", plan.missing[0].why);
}

#[test]
fn slots_are_inferred_of_nobody_who_does_not_set_samplers() {
    let mut images = stripped_server(&["llama_decode"]);
    // The common library could, if it were asked to.
    Arc::get_mut(&mut images[1]).unwrap().imports = vec!["llama_set_sampler".to_owned()];
    let plan = observable(&images);
    assert_eq!((plan.flags, plan.joining()), (TargetConfig::STEP_END, Joining::None));
    assert_eq!(serving(&plan, Role::SlotStart), [""; 0]);
}

#[test]
fn copies_of_sequences_are_watched_where_tasks_are_not() {
    let names = ["llama_memory_seq_cp", DECODE, SEQ_RM, COMMON_SAMPLE];
    let plan = observable(&[image(1, "llama-server", &[&SERVER[..3], &names])]);
    assert_eq!(serving(&plan, Role::SlotStart), ["launch_slot_with_task", "llama_memory_seq_cp"]);
    assert_eq!((plan.flags & TargetConfig::INFERRED_SLOTS, plan.joining()), (0, Joining::Inferred));
    let plan = observable(&[image(1, "llama-server", &[SERVER, &names])]);
    assert_eq!(serving(&plan, Role::SlotStart), ["launch_slot_with_task"]);
}

#[test]
fn both_entry_points_where_the_methods_are_hidden() {
    let plan = observable(&[image(1, "app", &[&["llama_process", "llama_decode", "llama_get_logits_ith"]])]);
    assert_eq!(serving(&plan, Role::Batch), ["llama_process", "llama_decode"]);
    let layout = |id| only(&plan, id).cookie.batch_layout();
    assert_eq!(layout(ProbeId::LlamaProcess), Some(BatchLayout::ExtArg2));
    assert_eq!(layout(ProbeId::LlamaDecode), Some(BatchLayout::Value));
}

#[test]
fn the_python_binding_has_only_libllama() {
    let plan = observable(&[image(1, "libllama.so", &[LIBLLAMA])]);
    assert_eq!(serving(&plan, Role::Batch), ["decode_ext"]);
    let tokens =
        ["llama_sampler_sample", "llama_get_logits_ith", "llama_get_sampled_token_ith", "llama_get_logits"];
    assert_eq!(serving(&plan, Role::Token), tokens);
    let (step_ends, embedded) = (serving(&plan, Role::StepEnd), "llama_get_embeddings_seq");
    assert_eq!(
        step_ends,
        [&tokens[..], &[embedded]].concat(),
        "the token ends the step, or the look at embeddings"
    );
    let sites = |role| plan.probes.iter().filter(move |probe| probe.role == role).map(Probe::offset);
    assert!(sites(Role::Token).eq(sites(Role::StepEnd).take(tokens.len())), "one attachment serves both");
    assert_eq!(serving(&plan, Role::ContextEnd), ["llama_free", "llama_memory_clear", "llama_memory_seq_rm"]);
    assert!(only(&plan, ProbeId::MemorySeqRm).cookie.by_memory());
    assert_eq!(only(&plan, ProbeId::DecodeExt).cookie.memory_offset(), Some(0x118));
    assert_eq!((plan.flags, plan.joining()), (TargetConfig::STEP_END, Joining::None));
    assert_eq!(missing(&plan), [Role::Task, Role::SlotStart, Role::CacheHit, Role::SlotEnd]);
    for at in [0, 2] {
        assert_eq!(plan.missing[at].why, "needs the slots of a server");
    }
    assert!(plan.missing[1].why.contains("a binding"), "{}", plan.missing[1].why);

    let target = Target { comm: "python3".to_owned(), ..process(7) };
    let report = ProcessReport::of(&target, &Verdict::Observable(plan), false).unwrap();
    assert!(!report.is_complete());
    let lost: Vec<_> = report.missing.iter().map(|missing| (missing.role, missing.lost)).collect();
    assert_eq!(lost[2], (Role::CacheHit, "cached tokens"));
    assert!(lost[0].1.contains("join") && lost[1].1.contains("llm_slots_busy"), "{lost:?}");
}

#[test]
fn an_old_python_binding_samples_by_itself() {
    let sampling = ["llama_sample_token", "llama_sample_token_greedy", "llama_get_logits"];
    let plan = observable(&[image(1, "libllama.so", &[&["llama_decode"], &sampling])]);
    assert_eq!(serving(&plan, Role::Token), ["llama_sample_token", "llama_sample_token", "llama_get_logits"]);
    let priority =
        |symbol| plan.probes.iter().find(|probe| probe.symbol == symbol).unwrap().cookie.priority();
    assert!(priority("llama_sample_token_greedy") < priority("llama_get_logits"), "it looks at them itself");
}

#[test]
fn the_node_binding_brings_the_common_library() {
    // A build between the two eras: no batches of the new kind. node itself shows nothing of llama.cpp.
    let names: Vec<_> =
        LIBLLAMA.iter().copied().filter(|name| ![DECODE_EXT, "llama_process"].contains(name)).collect();
    let plan = observable(&[
        image(1, "libllama.v0.5.0.so", &[&names]),
        image(2, "libllama-common.so", &[LIBCOMMON]),
    ]);
    assert_eq!(serving(&plan, Role::Batch), ["decode_batch"]);
    // Nothing calls the common sampler there; the rest of the group stands in.
    let tokens = serving(&plan, Role::Token);
    assert!(
        tokens.contains(&"common_sampler_sample") && tokens.contains(&"llama_get_logits_ith"),
        "{tokens:?}"
    );
    assert_eq!(serving(&plan, Role::CacheHit), [""; 0], "without slots it would count every call");
    assert_eq!(missing(&plan), [Role::Task, Role::SlotStart, Role::CacheHit, Role::SlotEnd]);
}

#[test]
fn servers_of_the_gpt_sampler_shift_their_sequences() {
    let plan = observable(&[image(1, "llama-server", &[OLD_SERVER, &[GPT_SAMPLE]])]);
    assert_eq!(serving(&plan, Role::StepEnd), ["gpt_sampler_sample"]);
    assert_eq!(serving(&plan, Role::CacheHit), ["llama_kv_cache_seq_rm"]);
    let all = TargetConfig::SLOTS | TargetConfig::SLOT_TOKENS | TargetConfig::STEP_END | TargetConfig::HTTP;
    assert_eq!(plan.flags, all | TargetConfig::SEQUENCE_SHIFT);
    let newer = observable(&[image(1, "llama-server", &[OLD_SERVER, &[COMMON_SAMPLE]])]);
    assert_eq!(newer.flags, all);
    let binding = observable(&[image(1, "app", &[&["llama_decode", GPT_SAMPLE]])]);
    assert_eq!(binding.flags, TargetConfig::STEP_END, "without slots there is nothing to shift");
}

#[test]
fn half_of_the_slot_symbols_are_none() {
    let plan = observable(&[image(1, "llama-server", &[&OLD_SERVER[..2], &OLD_SERVER[3..]])]);
    assert_eq!(missing(&plan), [Role::Task, Role::SlotStart, Role::CacheHit, Role::SlotEnd]);
    assert_eq!(plan.flags, TargetConfig::STEP_END, "tokens come from the context, not from slots");

    // The tasks of a server without slots would be joined to nothing.
    let plan = observable(&[image(1, "llama-server", &[&OLD_SERVER[..2], &OLD_SERVER[3..], &SERVER[3..]])]);
    assert_eq!((serving(&plan, Role::Task), plan.flags), (vec![], TargetConfig::STEP_END));
}

#[test]
fn two_copies_of_a_library_are_both_probed() {
    let plan = observable(&[
        image(1, "a/libllama.so", &[LIBLLAMA]),
        image(2, "b/libllama.so", &[&["llama_decode", "llama_sampler_sample", "llama_n_ctx"]]),
    ]);
    let batch: Vec<_> = plan.probes.iter().filter(|probe| probe.role == Role::Batch).collect();
    let seen: Vec<_> = batch.iter().map(|probe| (probe.image.id.inode, probe.probe.name())).collect();
    assert_eq!(seen, [(1, "decode_ext"), (2, "llama_decode")], "the entry point is chosen for each copy");
    let sizes = batch.iter().map(|probe| probe.cookie.context_layout());
    let sizes: Vec<_> = sizes.map(|layout| (layout.total, layout.sequence)).collect();
    assert_eq!(sizes, [(Some(8), Some(12)), (Some(8), None)]);
    assert_ne!(batch[0].cookie.image(), batch[1].cookie.image(), "each has a layout of its own");
    let samplers =
        plan.probes.iter().filter(|probe| probe.role == Role::Token && probe.probe == ProbeId::SamplerSample);
    assert_eq!(samplers.count(), 2);
}

#[test]
fn two_names_of_one_function_are_one_probe() {
    let mut image = Arc::unwrap_or_clone(image(1, "libllama.so", &[&["llama_decode", SEQ_RM]]));
    let alias = Symbol { name: "llama_process".to_owned(), ..image.symbols[0].clone() };
    image.symbols.push(alias);
    let plan = observable(&[Arc::new(image)]);
    assert_eq!(serving(&plan, Role::Batch).len(), 1);
}

#[test]
fn the_context_size_is_where_the_code_says() {
    let layout = |more: &[&str]| {
        let plan = observable(&[image(1, "libllama.so", &[&["llama_decode"], more])]);
        let layout = only(&plan, ProbeId::LlamaDecode).cookie.context_layout();
        (layout.total, layout.sequence)
    };
    // The function of the interface jumps to the method.
    assert_eq!(layout(&[CONTEXT_SIZE, "llama_n_ctx_seq", CONTEXT_SIZE_PER_SEQUENCE]), (Some(8), Some(12)));
    assert_eq!(layout(&["llama_n_ctx", "llama_n_ctx_seq"]), (Some(8), None));
    assert_eq!(layout(&["llama_n_ctx_seq", CONTEXT_SIZE_PER_SEQUENCE]), (None, None), "a part of what?");
    assert_eq!(layout(&["llama_synchronize"]), (None, None), "not guessed");
}

#[test]
fn a_server_has_every_way_to_a_token_until_a_slot_starts() {
    let images = [
        image(1, "libllama.so", &[LIBLLAMA]),
        image(2, "libllama-common.so", &[LIBCOMMON]),
        image(3, "libllama-server-impl.so", &[SERVER]),
    ];
    let mut plan = undecided(&images);
    assert!(plan.is_undecided() && plan.flags & TargetConfig::SLOTS != 0);
    let ways = [
        "common_sampler_sample",
        "llama_sampler_sample",
        "llama_get_logits_ith",
        "llama_get_sampled_token_ith",
        "llama_get_logits",
    ];
    let mut both: Vec<_> = serving(&plan, Role::Token);
    assert_eq!(both.remove(0), "process_token");
    both.sort_unstable();
    let mut expected = ways;
    expected.sort_unstable();
    assert_eq!(both, expected);
    plan.commit_to_server();
    assert_eq!(serving(&plan, Role::Token), ["process_token"]);
    assert_eq!(serving(&plan, Role::StepEnd), ["common_sampler_sample"], "is a server's in any case");
    assert!(!plan.is_undecided());

    // Until then the flags are those of a program that uses the library, but for what may come.
    let flags = undecided(&images).flags;
    let now = TargetConfig::effective(flags);
    assert_eq!(now & (TargetConfig::SLOTS | TargetConfig::SLOT_TOKENS), 0);
    assert_eq!(
        TargetConfig::effective(flags | TargetConfig::STARTED) & TargetConfig::SLOTS,
        TargetConfig::SLOTS
    );
    assert!(!undecided(&[image(1, "libllama.so", &[LIBLLAMA])]).is_undecided(), "it can be nothing else");
}

#[test]
fn what_cannot_be_observed_is_told_from_what_is_foreign() {
    let verdict = |names: &[&str]| plan(&[image(1, "app", &[names])]);
    assert!(matches!(verdict(&["llama_eval"]), Verdict::Unsupported(why) if why.contains("llama_eval")));
    assert!(matches!(verdict(&["llama_eval", "llama_decode"]), Verdict::Observable(_)));
    assert!(matches!(verdict(&["malloc"]), Verdict::Foreign));
    assert!(matches!(plan(&[]), Verdict::Foreign));
}

#[test]
fn without_symbols_there_are_only_sockets() {
    let plan = sockets_only();
    assert_eq!((plan.flags, plan.joining(), plan.probes.len()), (TargetConfig::HTTP, Joining::Answers, 0));
    assert_eq!(missing(&plan), Role::MET);
}
