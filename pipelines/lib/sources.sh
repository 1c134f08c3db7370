# Kinds of sources, and checks of sources, files and folders before a pipeline starts.
# shellcheck shell=bash
# shellcheck disable=SC2154 # the platform sets csi_cameras, options.sh print

# SOURCE: prints csi (where the platform has such cameras), rtsp, http, camera or file.
kind_of() {
    case $1 in
        http://?* | https://?*) echo http ;;
        rtsp://?* | rtsps://?* | rtspt://?* | rtspu://?* | rtsph://?*) echo rtsp ;;
        /dev/*) echo camera ;;
        csi:*) if [[ $csi_cameras == yes ]]; then echo csi; else echo file; fi ;;
        *) echo file ;;
    esac
}

# SOURCE: fails if there can be no such camera or video.
check_source() {
    case $(kind_of "$1") in
        csi) check_csi_camera "$1" ;;
        camera)
            [[ -c $1 ]] || fail "$1: no such camera; 'ls /dev/video*' lists those that are there"
            [[ -r $1 ]] || fail "$1 cannot be opened by $(id -un); add this user to the group $(stat -c %G "$1")" ;;
        file)
            [[ $1 != *://* ]] || wrong "$1: only files, addresses with rtsp:// or http:// and /dev/video* are known"
            [[ -f $1 ]] || fail "$1: no such file"
            [[ -r $1 ]] || fail "$1 cannot be read by $(id -un)"
            [[ -s $1 ]] || fail "$1 is empty"
            check_video "$1" ;;
    esac
}

# FILE: fails if it is a picture: GStreamer would show it once, and some animations forever.
check_video() {
    local start animated=''
    start=$(head -c 12 -- "$1" | od -An -v -tx1 | tr -d ' \n')
    case $start in
        474946383?61*) animated="; 'facepipe recognize video' and 'facepipe extract' play animated ones" ;;
        ffd8ff*)
            # A recording of bare motion JPEG begins like a picture.
            [[ ${1,,} != *.mjp?(e)g ]] || return 0 ;;
        89504e470d0a1a0a* | 52494646????????57454250* | 49492a00* | 4d4d002a*) ;;
        ????????667479706865* | ????????667479706d696631* | ????????6674797061766966*) ;; # ftyphe.., ftypmif1, ftypavif
        *) return 0 ;;
    esac
    fail "$1 is a picture, and no video: 'facepipe recognize folder' recognises the people on a folder's pictures$animated"
}

# OPTION FILE
check_readable() {
    [[ -z $2 || (-f $2 && -r $2) ]] || fail "$1 $2: there is no readable file"
}

# FOLDER: makes it if necessary, unless the pipeline is only printed.
make_writable() {
    [[ $print == no ]] || return 0
    mkdir -p -- "$1" || fail "$1: this folder cannot be made"
    [[ -w $1 ]] || fail "$1: $(id -un) cannot write into this folder"
}
