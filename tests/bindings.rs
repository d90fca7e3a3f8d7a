//! The bindings that are given as examples do what they say, over the library as it is built here.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::native::{self, libraries, root, run};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(root().join(script)).env("LOCI_LIBRARY", libraries().join("libloci.so")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn model(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, native::chat_model()).unwrap();
    path
}

#[test]
fn python_does_what_its_file_says() {
    let dir = tempfile::tempdir().unwrap();
    let said = run(python("tests/python/binding.py").arg(model(&dir)).arg(dir.path()));
    assert!(said.is_empty(), "{said}");
    assert!(!run(python("examples/python/hello.py").arg(model(&dir)).arg("Where is the key?")).trim().is_empty());
}

/// The JNI layer of the Android example, for this machine, in `dir`; and the directory of the example's sources.
fn jni(dir: &tempfile::TempDir) -> (PathBuf, PathBuf) {
    let build = dir.path().join("build");
    let android = root().join("examples/android/loci/src/main");
    let javac = run(Command::new("sh").args(["-c", "readlink -f \"$(command -v javac)\""]));
    let home = Path::new(javac.trim()).ancestors().nth(2).expect("javac is installed (Debian: default-jdk-headless)");
    run(Command::new("cmake")
        .env("JAVA_HOME", home)
        .arg("-S")
        .arg(android.join("cpp"))
        .arg("-B")
        .arg(&build)
        .arg(format!("-DLOCI_INCLUDE={}", root().join("include").display()))
        .arg(format!("-DLOCI_LIBRARY={}", libraries().join("libloci.so").display())));
    run(Command::new("cmake").arg("--build").arg(&build));
    // The library's own name, under which the JNI layer looks for it.
    std::os::unix::fs::symlink(libraries().join("libloci.so"), dir.path().join("libloci.so.0")).unwrap();
    (build, android)
}

/// Runs a class on a JVM that checks every use of JNI; it is given a model and `dir`, and says nothing if all is well.
fn on_the_jvm(class: &str, class_path: &OsStr, jni: &Path, dir: &tempfile::TempDir) {
    let mut java = Command::new("java");
    java.args(["-Xcheck:jni", "-ea", "-cp"]).arg(class_path).arg(format!("-Djava.library.path={}", jni.display()));
    java.env("LD_LIBRARY_PATH", dir.path()).arg(class).arg(model(dir)).arg(dir.path());
    let out = native::output(&mut java);
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.is_empty(), "{}\n{said}", out.status);
}

#[test]
fn java_does_what_the_native_class_says() {
    let dir = tempfile::tempdir().unwrap();
    let (jni, android) = jni(&dir);
    let classes = dir.path().join("classes");
    let mut javac = Command::new("javac");
    javac.args(["-Xlint:all", "-Werror", "--release", "17", "-d"]).arg(&classes);
    for class in ["Native", "Passage", "Progress", "LociException"] {
        javac.arg(android.join("java/dev/loci").join(class).with_extension("java"));
    }
    run(javac.arg(root().join("tests/java/dev/loci/BindingTest.java")));
    on_the_jvm("dev.loci.BindingTest", classes.as_os_str(), &jni, &dir);
}

/// The Kotlin API over it: `Flow`, cancellation, close.
#[test]
#[ignore = "needs a Kotlin compiler, which `make kotlin` fetches"]
fn kotlin_does_what_its_api_says() {
    let dir = tempfile::tempdir().unwrap();
    let (jni, _) = jni(&dir);
    let classes = dir.path().join("classes");
    let libraries = run(Command::new(root().join("tools/android/kotlin.sh")).arg(&classes).arg(root().join("tests/kotlin")));
    let class_path = format!("{}:{}", classes.display(), libraries.trim());
    on_the_jvm("dev.loci.KotlinTestKt", class_path.as_ref(), &jni, &dir);
}

/// The Swift package, whose sources are the same on Apple's systems; here as Swift for Linux compiles them.
#[test]
#[ignore = "needs Swift for Linux: `make swift`"]
fn swift_does_what_its_package_says() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(libraries().join("libloci.so"), dir.path().join("libloci.so")).unwrap();
    std::os::unix::fs::symlink(libraries().join("libloci.so"), dir.path().join("libloci.so.0")).unwrap();
    let mut swift = Command::new("swift");
    swift.args(["test", "--package-path"]).arg(root().join("examples/apple")).arg("--scratch-path").arg(dir.path().join("build"));
    swift.args(["-Xswiftc", "-warnings-as-errors", "-Xswiftc", "-strict-concurrency=complete", "-Xcc"]);
    swift.arg(format!("-I{}", root().join("include").display())).arg("-Xlinker").arg(format!("-L{}", dir.path().display()));
    swift.env("LD_LIBRARY_PATH", dir.path()).env("LOCI_MODEL", model(&dir));
    let out = native::output(&mut swift);
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    // A package without tests succeeds as well.
    assert!(said.contains("LociTests' passed") && !said.contains("skipped"), "{said}");
}
