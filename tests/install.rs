//! What `make install` and `make deb` lay down is all that a program needs: C and C++ programs are built from the installed tree alone, by
//! hand, by pkg-config and by CMake, linked either way, and they run. Nothing but `loci_*` is global in either library.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::native::{self, libraries, output, root, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An installed tree that was moved after it was installed: nothing in it may name where it was. And a directory for one test.
struct Tree {
    dir: &'static Path,
    work: tempfile::TempDir,
}

impl Tree {
    fn new() -> Tree {
        static DIR: OnceLock<PathBuf> = OnceLock::new();
        let dir = DIR.get_or_init(|| {
            let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("install");
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).unwrap();
            run(Command::new(root().join("tools/package/install.sh")).arg(libraries()).arg(VERSION).arg(dir.join("first")));
            std::fs::rename(dir.join("first"), dir.join("moved")).unwrap();
            std::fs::write(dir.join("model.gguf"), native::chat_model()).unwrap();
            dir
        });
        Tree { dir, work: tempfile::tempdir().unwrap() }
    }

    fn prefix(&self) -> PathBuf {
        self.dir.join("moved")
    }

    fn work(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn model(&self) -> PathBuf {
        self.dir.join("model.gguf")
    }

    /// What pkg-config answers for this tree.
    fn pkg_config(&self, args: &[&str]) -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", self.prefix().join("lib/pkgconfig")).args(args).arg("loci");
        run(&mut command).split_whitespace().map(str::to_owned).collect()
    }

    fn answers(&self, program: &Path) {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.prefix().join("lib")).arg(self.model()).arg("Where is the key?");
        assert!(!run(&mut command).trim().is_empty(), "{} has nothing to say", program.display());
    }
}

/// The global names that a library defines.
fn globals(library: &Path, dynamic: bool) -> Vec<String> {
    let symbols = run(Command::new("readelf").args([if dynamic { "--dyn-syms" } else { "--symbols" }, "--wide"]).arg(library));
    let name = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, _, _, _, "GLOBAL" | "WEAK", _, section, name, ..] if section != "UND" => Some(name.to_owned()),
        _ => None,
    };
    let mut names: Vec<String> = symbols.lines().filter_map(name).collect();
    names.sort();
    names
}

#[test]
fn programs_are_built_from_the_installed_tree() {
    let tree = Tree::new();
    let source = root().join("examples/c/hello.c");

    let (shared, fixed) = (tree.work("shared"), tree.work("static"));
    run(Command::new("cc").arg(&source).args(tree.pkg_config(&["--cflags", "--libs"])).arg("-o").arg(&shared));
    tree.answers(&shared);
    let libs = tree.pkg_config(&["--static", "--libs"]).into_iter().map(|l| if l == "-lloci" { "-l:libloci.a".to_owned() } else { l });
    run(Command::new("cc").arg(&source).args(tree.pkg_config(&["--cflags"])).args(libs).arg("-o").arg(&fixed));
    tree.answers(&fixed);
    let needed = run(Command::new("readelf").args(["--dynamic", "--wide"]).arg(&fixed));
    assert!(!needed.contains("libloci"), "{needed}");
    assert_eq!(tree.pkg_config(&["--modversion"]), [VERSION]);

    run(Command::new("cmake")
        .arg("-S")
        .arg(root().join("examples/cmake"))
        .arg("-B")
        .arg(tree.work("cmake"))
        .arg(format!("-DCMAKE_PREFIX_PATH={}", tree.prefix().display())));
    run(Command::new("cmake").arg("--build").arg(tree.work("cmake")));
    for program in ["hello_shared", "hello_static", "hello_cpp"] {
        tree.answers(&tree.work("cmake").join(program));
    }
    // A version that is not there is refused, by name.
    let project = tree.work("wants");
    std::fs::create_dir(&project).unwrap();
    std::fs::write(project.join("CMakeLists.txt"), "cmake_minimum_required(VERSION 3.16)\nproject(x C)\nfind_package(loci 99 REQUIRED)\n")
        .unwrap();
    let out = output(
        Command::new("cmake")
            .arg("-S")
            .arg(&project)
            .arg("-B")
            .arg(tree.work("wants-build"))
            .arg(format!("-DCMAKE_PREFIX_PATH={}", tree.prefix().display())),
    );
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains(VERSION), "{out:?}");
}

#[test]
fn nothing_else_is_global() {
    let tree = Tree::new();
    let declared: Vec<String> = run(&mut Command::new(root().join("tools/exports.sh"))).lines().map(str::to_owned).collect();
    assert!(declared.len() > 60, "{declared:?}");
    assert_eq!(globals(&tree.prefix().join("lib/libloci.a"), false), declared);
    assert_eq!(globals(&tree.prefix().join("lib/libloci.so"), true), declared);

    let dynamic = run(Command::new("readelf").args(["--dynamic", "--wide"]).arg(tree.prefix().join("lib/libloci.so")));
    let needed: Vec<&str> = dynamic.lines().filter(|l| l.contains("(NEEDED)")).filter_map(|l| l.split(['[', ']']).nth(1)).collect();
    let known =
        ["libgcc_s.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"];
    assert!(!needed.is_empty() && needed.iter().all(|n| known.contains(n)), "{needed:?}");

    // Two static copies of Rust's library, and a dependency of the same name, in one program.
    let clash = tree.work("clash.c");
    std::fs::write(
        &clash,
        "#include <loci.h>\nint rust_eh_personality(void) { return 1; }\nint simsimd_dot_f32(void) { return 2; }\n\
         int main(void) { return rust_eh_personality() + simsimd_dot_f32() + (loci_version_number() == 0) == 3 ? 0 : 1; }\n",
    )
    .unwrap();
    let libs = tree.pkg_config(&["--static", "--libs"]).into_iter().map(|l| if l == "-lloci" { "-l:libloci.a".to_owned() } else { l });
    run(Command::new("cc").arg(&clash).args(tree.pkg_config(&["--cflags"])).args(libs).arg("-o").arg(tree.work("clash")));
    run(&mut Command::new(tree.work("clash")));
}

#[test]
fn the_cpp_layer_keeps_its_promises() {
    let tree = Tree::new();
    for standard in ["c++17", "c++20"] {
        let exe = tree.work(standard);
        let mut cc = Command::new("c++");
        cc.args([&format!("-std={standard}"), "-Wall", "-Wextra", "-Werror", "-pedantic", "-g"]).arg(root().join("tests/cpp/wrapper.cpp"));
        run(cc.args(tree.pkg_config(&["--cflags", "--libs"])).arg("-o").arg(&exe));
        let dir = tree.work(&format!("{standard}-files"));
        std::fs::create_dir(&dir).unwrap();
        run(Command::new(&exe).env("LD_LIBRARY_PATH", tree.prefix().join("lib")).arg(tree.model()).arg(&dir));
    }
}

#[test]
fn packages_install_and_go_without_a_trace() {
    let tree = Tree::new();
    let debs = run(Command::new(root().join("tools/package/deb.sh")).arg(libraries()).arg(VERSION).arg(tree.work("debs")));
    let debs: Vec<&str> = debs.lines().collect();
    assert_eq!(debs.len(), 2, "{debs:?}");
    // A root of its own, whose dpkg knows no packages.
    let system = tree.work("system");
    for dir in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/log"] {
        std::fs::create_dir_all(system.join(dir)).unwrap();
    }
    std::fs::write(system.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = |args: &[&str]| {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", system.display())).arg("--log=/dev/null");
        run(command.args(["--force-not-root", "--force-depends", "--force-bad-path", "--force-script-chrootless"]).args(args))
    };
    dpkg(&[&["--install"][..], &debs].concat());
    let libdir = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    for file in ["usr/include/loci.h", "usr/include/loci.hpp", &format!("{libdir}/libloci.so.{VERSION}"), &format!("{libdir}/libloci.a")] {
        assert!(system.join(file).is_file(), "{file} was not installed");
    }
    // Built and run from there.
    let mut cc = Command::new("cc");
    cc.arg(root().join("examples/c/hello.c")).arg("-I").arg(system.join("usr/include")).arg("-L").arg(system.join(&libdir));
    run(cc.args(["-lloci", "-o"]).arg(tree.work("packaged")));
    let mut packaged = Command::new(tree.work("packaged"));
    run(packaged.env("LD_LIBRARY_PATH", system.join(&libdir)).arg(tree.model()).arg("Where is the key?"));

    dpkg(&["--purge", "libloci-dev", "libloci0"]);
    // Directories go too, unless something is in them.
    let left = if system.join("usr").exists() { run(Command::new("find").arg(system.join("usr"))) } else { String::new() };
    assert!(left.is_empty(), "left behind: {left}");
}
