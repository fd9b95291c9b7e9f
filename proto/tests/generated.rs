//! The committed code under `src/gen` is what the `.proto` files generate. After a change of a `.proto` file:
//! `UPDATE_GENERATED=1 cargo test -p firn-proto`.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message as _;

type Files = BTreeMap<String, Vec<u8>>;

const DESCRIPTOR: &str = "descriptor.bin";

fn manifest_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.proto` file, sorted: the order of files decides the bytes of the descriptor set.
fn proto_files(root: &Path) -> Vec<PathBuf> {
    let mut pending = vec![root.join("firn"), root.join("inference")];
    let mut files = Vec::new();
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn read_folder(folder: &Path) -> Files {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn generate() -> Files {
    let root = manifest_dir();
    let mut compiler = protox::Compiler::new([root]).unwrap();
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(proto_files(root)).unwrap();
    let mut descriptors = compiler.file_descriptor_set();

    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .out_dir(out.path())
        .compile_fds(descriptors.clone())
        .unwrap();
    let mut files = read_folder(out.path());
    // An imported package whose types prost-types has leaves an empty file behind.
    files.retain(|name, _| name.starts_with("firn.") || name == "inference.rs");

    // Reflection needs no comments, and without them the descriptors are a fraction of the size.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    files.insert(DESCRIPTOR.to_owned(), descriptors.encode_to_vec());
    files
}

#[test]
fn committed_code_is_what_the_protos_generate() {
    let folder = manifest_dir().join("src/gen");
    let generated = generate();
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in &generated {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
    let committed = read_folder(&folder);
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&committed), names(&generated), "files of src/gen; UPDATE_GENERATED=1 writes them");
    for (name, bytes) in &generated {
        assert!(committed[name] == *bytes, "src/gen/{name} is stale; UPDATE_GENERATED=1 writes it");
    }
}

#[test]
fn the_descriptor_set_names_every_service() {
    let set = prost_types::FileDescriptorSet::decode(firn_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut services: Vec<String> = set
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())))
        .collect();
    services.sort();
    assert_eq!(
        services,
        [
            "firn.dataprep.v1.DataPrepService",
            "firn.dataprep.v1.FileService",
            "firn.inference.v1.InferenceService",
            "firn.registry.v1.RegistryService",
            "firn.trainer.v1.TrainerService",
            "inference.GRPCInferenceService",
        ]
    );
}
