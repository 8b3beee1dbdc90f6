package main

// refusedPlay are the flags of "podman kube play" that "play" does not have.
var refusedPlay = refused{
	"annotation":           notYet + "put it into the manifest",
	"authfile":             "set images.auth_file in the configuration: the server pulls, not this command",
	"build":                "images are not built here; build them with Buildah or Podman",
	"cert-dir":             reasonRegistry,
	"configmap":            notYet + "name the file with the others",
	"context-dir":          "images are not built here; build them with Buildah or Podman",
	"creds":                reasonRegistry,
	"force":                notYet + "\"subpod volume rm\" removes the volumes of claims",
	"ip":                   notYet + "use --network NAME:ip=…,mac=…",
	"log-driver":           "logs are files in the format of the CRI",
	"log-opt":              notYet + "the kubelet's bound of logs is not applied",
	"mac-address":          notYet + "use --network NAME:ip=…,mac=…",
	"no-hostname":          notYet + "/etc/hostname is always the pod's",
	"no-hosts":             notYet + "/etc/hosts is always the pod's",
	"no-pod-prefix":        "containers are named POD/CONTAINER",
	"publish":              notYet + "use hostPort in the manifest",
	"publish-all":          notYet + "use hostPort in the manifest",
	"seccomp-profile-root": notYet + "localhost profiles are absolute paths",
	"start":                notYet + "pods are always started",
	"tls-verify":           reasonRegistry,
	"userns":               notYet + "use hostUsers: false in the manifest",
	"wait/w":               "it is what the command does without -d",
}
