# Names of folders and files for camera ids, and spool folders of earlier versions.
# shellcheck shell=bash
# shellcheck disable=SC2154 # options.sh sets spool_dir and print

# CAMERA_ID: prints the id as the name of a file or folder: every byte other than ASCII letters, digits, hyphens, underscores and
# dots (not the first) as %XX, so that no two ids share a name. File systems allow 255 bytes; the end of a longer name
# becomes a digest of the id.
file_name() {
    local LC_ALL=C id=$1 name='' byte code i
    for ((i = 0; i < ${#id}; i++)); do
        byte=${id:i:1}
        if [[ $byte != [A-Za-z0-9._-] || $name$byte == . ]]; then
            printf -v code '%d' "'$byte"
            printf -v byte '%%%02X' "$((code & 255))"
        fi
        name+=$byte
    done
    if ((${#name} > 200)); then
        name=${name:0:150} name=${name%"%"} name=${name%"%"?}
        name+='~'$(printf '%s' "$id" | sha256sum | head -c 32)
    fi
    printf '%s' "$name"
}

# CAMERA_ID: moves crops from the spool folder of an earlier version to the current one. Earlier versions wrote an underscore for
# each character that is now %XX, so cameras could share a folder; each crop names its camera. A folder that another camera is
# using (it holds the lock) stays with that camera, which sends all crops in it.
adopt_old_spool() {
    [[ -n $spool_dir && $print == no ]] || return 0
    local id=$1 new old found
    new=$spool_dir/$(file_name "$id")
    local names=("${id//[^A-Za-z0-9._-]/_}")
    local LC_ALL=C
    names+=("${id//[^A-Za-z0-9._-]/_}")
    for old in "${names[@]}"; do
        old=$spool_dir/${old/#./_}
        [[ $old != "$new" && -d $old ]] || continue
        found=$(find "$old" -maxdepth 1 -type f -name '*.crop' | wc -l) || continue
        ((found)) || continue
        [[ -d $new ]] || mkdir -m 700 -- "$new" || continue
        if flock --nonblock "$old/.lock" find "$old" -maxdepth 1 -type f -name '*.crop' -exec mv -n -t "$new" -- {} +; then
            say "$found faces that waited in $old now wait in $new"
        fi
    done
}
