#!/usr/bin/env bash
# release.sh TAG
# From a tag to what is published, in one command: checks that the tag, Cargo.toml and CHANGELOG.md speak of one version, builds
# the tag's own tree (a worktree beside this one, so that nothing of this one gets in), proves the packages, and builds them a
# second time from another folder, which must give the same bytes. All of it lies in target/release-TAG at the end, with the
# release's notes. Publishes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'release: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

tag=${1:-}
[[ $tag =~ ^v[0-9]+\.[0-9]+\.[0-9]+$ ]] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; fail "TAG is v<major>.<minor>.<patch>, and not '$tag'"; }
version=${tag#v}
commit=$(git rev-parse --verify --quiet "refs/tags/$tag^{commit}") || fail "there is no tag $tag: git tag --annotate $tag"
of_cargo=$(git show "$commit:Cargo.toml" | sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p')
[[ $of_cargo == "$version" ]] || fail "the tag says $version, and its Cargo.toml $of_cargo"
git show "$commit:CHANGELOG.md" | grep -q "^## \[$version\] - [0-9-]*$" ||
    fail "CHANGELOG.md of the tag has no section '## [$version] - <date>'"

out=$PWD/target/release-$tag
rm -rf "$out"
mkdir -p "$out/again"
trees=()
trap 'for tree in "${trees[@]}"; do git worktree remove --force "$tree"; done; rm -rf "$out/again"' EXIT
build() {
    local tree=$1 to=$2
    git worktree add --quiet --detach "$tree" "$commit"
    trees+=("$tree")
    # What was unpacked once serves again; it is read only.
    mkdir -p "$tree/.runtime"
    [[ ! -d .runtime/cross ]] || cp -a .runtime/cross "$tree/.runtime/"
    env -u CARGO_TARGET_DIR "$tree/packaging/build.sh" --out "$to"
}
say "$tag is $commit"
build "$PWD/target/release-tree" "$out"
say "proving"
(cd "$PWD/target/release-tree" && packaging/prove.sh --packages "$out")
say "building again, elsewhere"
build "$(mktemp -d)/another-folder" "$out/again"
cmp "$out/SHA256SUMS" "$out/again/SHA256SUMS" || fail "two builds of $tag differ (see above)"
"$PWD/target/release-tree/packaging/materials.py" changelog "$version" >"$out/NOTES.md"
say "two builds gave the same bytes; to be published, from $out:"
find "$out" -maxdepth 1 -type f -printf '%f\n' | sort
