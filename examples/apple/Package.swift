// swift-tools-version:5.9
import PackageDescription

#if os(Linux)
// What `make install` at the root of the repository has installed, found by pkg-config.
let library = Target.systemLibrary(name: "CLoci", pkgConfig: "loci")
#else
// CLoci.xcframework is made by `make ios` at the root of the repository.
let library = Target.binaryTarget(name: "CLoci", path: "CLoci.xcframework")
#endif

let package = Package(
    name: "Loci",
    platforms: [.iOS(.v13), .macOS(.v11)],
    products: [.library(name: "Loci", targets: ["Loci"])],
    targets: [
        library,
        .target(name: "Loci", dependencies: ["CLoci"]),
        .executableTarget(name: "ask", dependencies: ["Loci"]),
        .testTarget(name: "LociTests", dependencies: ["Loci"]),
    ]
)
