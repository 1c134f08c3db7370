#!/usr/bin/env bash
# release.sh TAG
# From a tag to what is published, in one command: checks that the tag, Cargo.toml and CHANGELOG.md speak of one version, builds
# the tag's own tree (a worktree beside this one, so that nothing of this one gets in), proves the packages, and builds them a
# second time from another folder, which must give the same bytes. All of it lies in target/release-TAG at the end, with the
# release's notes. Publishes nothing. If a step fails, the next run continues with what the first tree has compiled; the second
# build always starts from an empty folder, so the artefacts cannot depend on leftovers.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'release: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

tag=${1:-}
[[ $tag =~ ^v[0-9]+\.[0-9]+\.[0-9]+$ ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; fail "TAG is v<major>.<minor>.<patch>, and not '$tag'"; }
version=${tag#v}
commit=$(git rev-parse --verify --quiet "refs/tags/$tag^{commit}") || fail "there is no tag $tag: git tag --annotate $tag"
of_cargo=$(git show "$commit:Cargo.toml" | sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p')
[[ $of_cargo == "$version" ]] || fail "the tag says $version, and its Cargo.toml $of_cargo"
grep -q "^## \[${version//./\\.}\] - [0-9-]*$" <<<"$(git show "$commit:CHANGELOG.md")" ||
    fail "CHANGELOG.md of the tag has no section '## [$version] - <date>'"
while IFS=: read -r file line text; do
    fail "$file, line $line, is of another version than the tag's: ${text#"${text%%[! ]*}"}"
done < <(git grep --line-number -E '^ARG VERSION=|image: facepipe-[a-z]+:[0-9]|newTag: [0-9]' "$commit" -- deploy |
    grep -vE "(=|: *|:)${version//./\\.}\$" | sed "s/^$commit://")
((EUID == 0)) || fail "run this as root: packages are proved in file systems of their own"
[[ -d ${FACEPIPE_MIRROR:-} ]] || fail "FACEPIPE_MIRROR has to name the folder of weights, photographs and a video that packages are proved with"

# Variables meant for other builds must not change this one.
unset CARGO_TARGET_DIR FACEPIPE_COMMIT SOURCE_DATE_EPOCH
out=$PWD/target/release-$tag
# Renamed to $out when every step has passed.
unfinished=$out.unfinished
first=$PWD/target/release-tree
elsewhere=$(mktemp -d)
cleanup() {
    local status=$?
    git worktree remove --force "$elsewhere/another-folder" 2>/dev/null || true
    rm -rf "$elsewhere"
    git worktree prune
    ((status == 0)) || say "not finished: run it again to continue; the files so far are in $unfinished" >&2
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# tree FOLDER UNPACKED: checks the tag's tree out; Debian 11's libraries are taken from UNPACKED if they are there (they are only read).
tree() {
    if [[ -e $1/.git ]]; then
        git -C "$1" checkout --quiet --force --detach "$commit"
        git -C "$1" clean --quiet --force -d
    else
        rm -rf "$1"
        git worktree prune
        git worktree add --quiet --detach "$1" "$commit"
    fi
    if [[ -d $2 && ! -d $1/.runtime/cross ]]; then
        rm -rf "$1/.runtime/cross.new"
        mkdir -p "$1/.runtime/cross.new"
        # Hard links do not cross file systems.
        cp --archive --link "$2/." "$1/.runtime/cross.new/" 2>/dev/null || cp --archive "$2/." "$1/.runtime/cross.new/"
        mv "$1/.runtime/cross.new" "$1/.runtime/cross"
    fi
}

say "$tag is $commit"
rm -rf "$unfinished"
mkdir -p "$unfinished"
tree "$first" .runtime/cross
"$first/packaging/build.sh" --out "$unfinished"
say "proving"
"$first/packaging/prove.sh" --packages "$unfinished"
say "building again, elsewhere"
tree "$elsewhere/another-folder" "$first/.runtime/cross"
"$elsewhere/another-folder/packaging/build.sh" --out "$elsewhere/packages"
cmp "$unfinished/SHA256SUMS" "$elsewhere/packages/SHA256SUMS" || {
    diff "$unfinished/SHA256SUMS" "$elsewhere/packages/SHA256SUMS" >&2 || true
    rm -rf "$unfinished.again"
    mv "$elsewhere/packages" "$unfinished.again"
    fail "two builds of $tag differ; the second is in $unfinished.again"
}
"$first/packaging/materials.py" changelog "$version" >"$unfinished/NOTES.md"
rm -rf "$out"
mv "$unfinished" "$out"
git worktree remove --force "$first"
say "two builds gave the same bytes; to be published, from $out:"
find "$out" -maxdepth 1 -type f -printf '%12s  %f\n' | sort -k 2
