# Part of the maintainer scripts of the packages that need weights: where those of the whole machine lie. What is below
# /usr/local belongs to the administrator: the folder goes only while it is empty.
MODELS=/usr/local/share/facepipe/models

make_models_folder() {
    [ -d /usr/local/share ] || return 0
    for folder in /usr/local/share/facepipe "$MODELS"; do
        if [ ! -e "$folder" ]; then
            mkdir "$folder" 2>/dev/null && chmod 0755 "$folder" || return 0
        fi
    done
}

remove_models_folder() {
    for folder in "$MODELS" /usr/local/share/facepipe; do
        rmdir "$folder" 2>/dev/null || true
    done
}
