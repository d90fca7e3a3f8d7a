// swift-tools-version:5.9
import PackageDescription

// CLoci.xcframework is made by `make ios` at the root of the repository.
let package = Package(
    name: "Loci",
    platforms: [.iOS(.v13), .macOS(.v11)],
    products: [.library(name: "Loci", targets: ["Loci"])],
    targets: [
        .binaryTarget(name: "CLoci", path: "CLoci.xcframework"),
        .target(name: "Loci", dependencies: ["CLoci"]),
        .executableTarget(name: "ask", dependencies: ["Loci"]),
        .testTarget(name: "LociTests", dependencies: ["Loci"]),
    ]
)
