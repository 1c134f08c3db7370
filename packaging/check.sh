#!/usr/bin/env bash
# check.sh
# Looks at what packages are made of without building them: maintainer scripts by shellcheck as dpkg runs them (with what they
# share put in), control files by dpkg-deb, the service's path among what is packaged, the server's manual by man, where there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "packaging/check.sh: $*" >&2; exit 1; }

for package in packaging/debian/*/; do
    name=$(basename "$package")
    folder=$work/$name
    mkdir -p "$folder/DEBIAN"
    for script in "$package"{preinst,postinst,prerm,postrm}; do
        [[ -e $script ]] || continue
        packaging/maintainer-script.sh "$script" >"$folder/DEBIAN/$(basename "$script")"
        chmod 755 "$folder/DEBIAN/$(basename "$script")"
        # Not each of them uses all that they share.
        shellcheck --shell=sh --exclude=SC2317 "$folder/DEBIAN/$(basename "$script")"
    done
    # dpkg-deb refuses fields that are wrong.
    packaging/control.sh "$package" 0.1.0-1 amd64 'libc6 (>= 2.31)' >"$folder/DEBIAN/control"
    dpkg-deb --build "$folder" "$work/$name.deb" >/dev/null
    [[ $(dpkg-deb --field "$work/$name.deb" Package) == "$name" ]] || fail "$package is not the package $name"
done

unit=$(packaging/unit.sh)
grep -qx 'ExecStart=/usr/bin/facepipe-backend' <<<"$unit" || fail "the service does not start what the package has"
grep -q '/usr/local/bin' <<<"$unit" && fail "the service has a path of another installation"
if command -v man >/dev/null; then
    warnings=$(man --warnings --local-file packaging/facepipe-backend.8 2>&1 >/dev/null || true)
    [[ -z $warnings ]] || fail "facepipe-backend.8: $warnings"
fi
