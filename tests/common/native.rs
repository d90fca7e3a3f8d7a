//! For tests that go through a C compiler: commands that must succeed, and the C libraries of the profile under test.

use super::tiny::{self, TinyOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command to its end; what it cannot start is said to be missing.
pub fn output(command: &mut Command) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    command.output().unwrap_or_else(|e| {
        panic!(
            "{name}: {e}. This test needs gcc, g++, binutils, valgrind, cmake and pkg-config: `make test` installs them (Debian: apt install gcc g++ valgrind cmake pkg-config)"
        )
    })
}

/// As [`output`], and it must succeed; its standard output.
pub fn run(command: &mut Command) -> String {
    let out = output(command);
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?} ended with {}\n{stdout}\n{stderr}", out.status);
    stdout.into_owned()
}

/// Where `libloci.so` and `libloci.a` lie, built with this test's own profile and target directory.
pub fn libraries() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let exe = std::env::current_exe().expect("the path of this test");
        let dir = exe.ancestors().nth(2).expect("target/PROFILE/deps/test").to_path_buf();
        let profile = match dir.file_name().and_then(|n| n.to_str()) {
            Some("debug") => "dev",
            Some(name) => name,
            None => panic!("{} is not in a target directory", exe.display()),
        };
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root()).args(["build", "--quiet", "--package", "loci-ffi", "--profile", profile, "--target-dir"]);
        run(cargo.arg(dir.parent().expect("target")));
        dir
    })
}

/// Names every role and the end, so that a test can say what it should render.
const TEMPLATE: &str =
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

/// Options of a tiny model with a chat template: `[user]hello[assistant]`.
pub fn chat_options() -> TinyOptions {
    let template = |w: &mut loci::gguf::Writer| {
        w.str("tokenizer.chat_template", TEMPLATE);
    };
    TinyOptions { add: Some(template), ..TinyOptions::default() }
}

/// A model made with [`chat_options`], as a file.
pub fn chat_model() -> Vec<u8> {
    tiny::llama(chat_options())
}
