use super::*;

/// A directory with a certificate, its key, and a web configuration file.
struct Staged {
    directory: tempfile::TempDir,
}

const LOOPBACK: &str = "127.0.0.1:9464";
const OPEN: &str = "0.0.0.0:9464";
const TLS: &str = "tls_server_config: { cert_file: server.crt, key_file: server.key ";

impl Staged {
    fn new(configuration: &str) -> Self {
        let staged = Self { directory: tempfile::tempdir().unwrap() };
        staged.certify();
        staged.write("web.yml", configuration);
        staged
    }

    fn certify(&self) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        self.write("server.crt", &made.cert.pem());
        self.write("server.key", &made.signing_key.serialize_pem());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn options(&self) -> WebOptions {
        WebOptions { file: Some(self.path("web.yml")), names_users: true, openly: false }
    }

    fn open(&self, address: &str) -> Result<Web> {
        Web::open(&self.options(), address.parse().unwrap())
    }

    fn error(&self) -> String {
        format!("{:#}", self.open(LOOPBACK).err().expect("it should be refused"))
    }
}

fn users() -> String {
    format!("basic_auth_users: {{ ada: '{}' }}\n", bcrypt::hash("right", 4).unwrap())
}

/// The sample in the toolkit's documentation, key for key, with its hashes of cost 10.
#[test]
fn the_sample_of_the_toolkit_is_accepted() {
    let staged = Staged::new(
        "# As the toolkit documents it.\n\
         tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n\n\
         basic_auth_users:\n  \
           alice: $2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze\n  \
           bob: $2y$10$hLqFl9jSjoAAy95Z/zw8Ye8wkdMBM8c5Bn1ptYqP/AXyV0.oy0S8m\n\n\
         rate_limit:\n  interval: \"1s\" # between two requests\n  burst: 20 # at once\n",
    );
    let web = staged.open(OPEN).unwrap();
    assert_eq!((web.scheme(), web.asks(), web.challenge()), ("https", true, "Basic"));
    assert_eq!((0..30).filter(|_| web.is_too_much()).count(), 10);
}

#[test]
fn every_key_of_the_toolkit_is_known() {
    for more in [
        "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\nrate_limit:\n",
        "",
        "rate_limit: { interval: 0, burst: 0 }\n",
        "http_server_config: { http2: false, headers: { Strict-Transport-Security: max-age=1, X-Content-Type-Options: nosniff, X-Frame-Options: sameorigin, X-XSS-Protection: '0', Content-Security-Policy: '' } }\n",
        &format!("{TLS}, min_version: TLS12, max_version: TLS13, prefer_server_cipher_suites: false }}\n"),
        &format!(
            "{TLS}, min_version: TLS10, curve_preferences: [CurveP256, CurveP384, CurveP521, X25519] }}\n"
        ),
        &format!(
            "{TLS}, max_version: TLS12, cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, TLS_AES_128_GCM_SHA256] }}\n"
        ),
        &format!("{TLS}, client_auth_type: RequestClientCert }}\n"),
        &format!(
            "{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: server.crt, client_allowed_sans: [scraper.example, 10.0.0.7] }}\n"
        ),
    ] {
        let web = Staged::new(more).open(LOOPBACK);
        assert!(web.is_ok(), "{more}: {:#}", web.err().unwrap());
    }
}

#[test]
fn keys_and_certificates_may_stand_in_the_file_itself() {
    let staged = Staged::new("");
    let inline = |name| {
        let text = fs::read_to_string(staged.path(name)).unwrap();
        text.lines().map(|line| format!("    {line}\n")).collect::<String>()
    };
    let (certificate, key) = (inline("server.crt"), inline("server.key"));
    staged.write("web.yml", &format!("tls_server_config:\n  cert: |\n{certificate}  key: |\n{key}"));
    assert_eq!(staged.open(LOOPBACK).unwrap().scheme(), "https");
}

#[test]
fn mistakes_name_the_file_and_the_key() {
    for (configuration, named) in [
        ("tls_server_confg: {}\n", "tls_server_confg"),
        ("tls_server_config: { cert_fil: a }\n", "cert_fil"),
        ("tls_server_config: { cert_file: server.crt }\n", "key_file"),
        ("tls_server_config: { key_file: server.key }\n", "cert_file"),
        ("tls_server_config: { cert_file: absent.crt, key_file: server.key }\n", "absent.crt"),
        ("tls_server_config: { cert_file: server.crt, key_file: server.crt }\n", "key_file"),
        ("tls_server_config: { cert_file: server.crt, cert: a, key_file: server.key }\n", "cert_file"),
        (&format!("{TLS}, min_version: TLS111 }}\n"), "min_version"),
        (&format!("{TLS}, min_version: TLS13, max_version: TLS12 }}\n"), "max_version"),
        (&format!("{TLS}, max_version: TLS11 }}\n"), "max_version"),
        (
            &format!(
                "{TLS}, min_version: TLS12, max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256] }}\n"
            ),
            "cipher_suites",
        ),
        (&format!("{TLS}, cipher_suites: [TLS_INVENTED] }}\n"), "TLS_INVENTED"),
        (&format!("{TLS}, curve_preferences: [CurveP999] }}\n"), "CurveP999"),
        (&format!("{TLS}, curve_preferences: [CurveP521] }}\n"), "curve_preferences"),
        (&format!("{TLS}, client_auth_type: Maybe }}\n"), "client_auth_type"),
        (&format!("{TLS}, client_ca_file: server.crt }}\n"), "client_auth_type"),
        (&format!("{TLS}, client_allowed_sans: [a] }}\n"), "client_auth_type"),
        (
            &format!("{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: absent.crt }}\n"),
            "absent.crt",
        ),
        ("http_server_config: { headers: { X-Other: a } }\n", "X-Other"),
        ("http_server_config: { headers: { X-Frame-Options: allow } }\n", "X-Frame-Options"),
        ("basic_auth_users: { ada: secret }\n", "ada"),
        ("rate_limit: { interval: soon, burst: 1 }\n", "interval"),
        ("rate_limit: { interval: 1s }\n", "burst"),
        ("bearer_token_file: absent\n", "absent"),
        ("bearer_token_file: short\n", "bearer_token_file"),
        ("basic_auth_users: [\n", "line"),
    ] {
        let staged = Staged::new(configuration);
        staged.write("short", "0123\n");
        let error = staged.error();
        assert!(error.contains(named) && error.contains("web.yml"), "{configuration}: {error}");
    }
    let error = Staged::new("basic_auth_users: { ada: secret }\n").error();
    assert!(!error.contains("secret"), "what stands there may be the password: {error}");
    let options = WebOptions { file: Some("/no/such/file.yml".into()), ..WebOptions::default() };
    let error = Web::open(&options, LOOPBACK.parse().unwrap()).err().unwrap();
    assert!(format!("{error:#}").contains("/no/such/file.yml"), "{error:#}");
}

#[test]
fn users_are_shown_to_no_network_without_credentials() {
    let open = |options: &WebOptions, address: &str| Web::open(options, address.parse().unwrap());
    let names = WebOptions { names_users: true, ..WebOptions::default() };
    for address in [OPEN, "[::]:0", "192.0.2.1:9464", "[::ffff:192.0.2.1]:1"] {
        let error = open(&names, address).err().unwrap().to_string();
        for named in [address, "--web-config-file", "127.0.0.1", "--listen-openly"] {
            assert!(error.contains(named), "{error}");
        }
        assert!(open(&WebOptions { openly: true, ..names.clone() }, address).is_ok());
        assert!(open(&WebOptions::default(), address).is_ok());
    }
    for address in [LOOPBACK, "127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert!(open(&names, address).is_ok(), "{address}");
    }
    for (configuration, enough) in [
        (users(), true),
        ("bearer_token_file: token\n".to_owned(), true),
        (
            format!("{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: server.crt }}\n"),
            true,
        ),
        (format!("{TLS}, client_auth_type: VerifyClientCertIfGiven, client_ca_file: server.crt }}\n"), false),
        (format!("{TLS}, client_auth_type: RequireAnyClientCert }}\n"), false),
        (format!("{TLS} }}\n"), false),
    ] {
        let staged = Staged::new(&configuration);
        staged.write("token", "0123456789abcdef");
        assert_eq!(staged.open(OPEN).is_ok(), enough, "{configuration}");
    }
}

#[test]
fn what_changes_is_read_again_and_what_is_broken_changes_nothing() {
    let staged = Staged::new(&users());
    let web = staged.open(OPEN).unwrap();
    let scheme = || {
        web.follow();
        web.scheme()
    };
    assert_eq!(scheme(), "http");
    let secured = format!("{}{TLS} }}\n", users());
    staged.write("web.yml", &secured);
    assert_eq!(scheme(), "https");
    let tls = web.tls().unwrap();
    web.follow();
    assert!(Arc::ptr_eq(&tls, &web.tls().unwrap()), "nothing has changed");
    // Broken; without credentials where they are needed; gone.
    for broken in ["tls_server_config: [\n", "{}\n"] {
        staged.write("web.yml", broken);
        web.follow();
        assert!(Arc::ptr_eq(&tls, &web.tls().unwrap()) && web.asks(), "{broken}");
    }
    fs::remove_file(staged.path("web.yml")).unwrap();
    web.follow();
    assert!(Arc::ptr_eq(&tls, &web.tls().unwrap()));
    staged.write("web.yml", &secured);
    web.follow();
    let renewed = web.tls().unwrap();
    assert!(!Arc::ptr_eq(&tls, &renewed));
    // A certificate without its key, and then with it.
    staged.write("server.key", "");
    web.follow();
    assert!(Arc::ptr_eq(&renewed, &web.tls().unwrap()));
    staged.certify();
    web.follow();
    assert!(!Arc::ptr_eq(&renewed, &web.tls().unwrap()));
}
