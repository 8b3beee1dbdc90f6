package kubernetes

import "fmt"

// volumes is a pod with a volume of each kind, and what they show.
const volumes = `apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
data: {a: one, b: two}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {pw: s3cret}
---
apiVersion: v1
kind: Pod
metadata: {name: vols, labels: {l: x}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: ` + busybox + `
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "trap 'exit 0' TERM; sleep 36000 & wait"]
    env:
    - {name: CM, valueFrom: {configMapKeyRef: {name: cm, key: a}}}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: secret, key: pw}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    volumeMounts:
    - {name: cm, mountPath: /cm}
    - {name: secret, mountPath: /secret}
    - {name: projected, mountPath: /projected}
    - {name: memory, mountPath: /memory}
    - {name: disk, mountPath: /disk}
    - {name: disk, mountPath: /sub, subPath: a/b}
    - {name: disk, mountPath: /expr, subPathExpr: $(POD)}
    - {name: disk, mountPath: /ro, readOnly: true}
    - {name: cm, mountPath: /etc/cmfile, subPath: b}
    - {name: etc, mountPath: /host-etc, readOnly: true}
    - {name: made, mountPath: /made}
    - {name: file, mountPath: /host-name, readOnly: true}
    - {name: image, mountPath: /image}
  volumes:
  - {name: cm, configMap: {name: cm}}
  - {name: secret, secret: {secretName: secret, defaultMode: 0400}}
  - name: projected
    projected:
      sources:
      - configMap: {name: cm}
      - secret: {name: secret}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
      - serviceAccountToken: {path: token}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: disk, emptyDir: {}}
  - {name: etc, hostPath: {path: /etc, type: Directory}}
  - {name: made, hostPath: {path: /var/lib/cni/subpod-row, type: DirectoryOrCreate}}
  - {name: file, hostPath: {path: /etc/hostname, type: FileOrCreate}}
  - {name: image, image: {reference: ` + agnhost + `, pullPolicy: IfNotPresent}}
`

// shows is a row: a script in the pod "vols" prints want.
func shows(want, script string) func(*cluster) {
	return func(c *cluster) {
		c.eventually(func() error { return c.says(want, "vols", "sh", "-c", script) })
	}
}

// refuses is a row: a script in a pod is refused with a message that has want in it.
func refuses(pod, want, script string) func(*cluster) {
	return func(c *cluster) {
		c.eventually(func() error {
			out, err := c.exec(pod, "sh", "-c", "{ "+script+"; } 2>&1 | grep -o '"+want+"' | head -1")
			if err == nil && out != want {
				err = fmt.Errorf("%q, want %q", out, want)
			}
			return err
		})
	}
}

var _ = add(map[string]func(*cluster){
	"volumes":             func(c *cluster) { c.apply(volumes); c.ready("vols") },
	"volume-configmap":    shows("one", "cat /cm/a"),
	"volume-secret":       shows("s3cret 400", "echo $(cat /secret/pw) $(stat -Lc %a /secret/pw)"),
	"env-from":            shows("one s3cret vols", "echo $CM $SECRET $POD"),
	"volume-projected":    shows(`one s3cret l="x"`, "echo $(cat /projected/a) $(cat /projected/pw) $(cat /projected/labels)"),
	"volume-token":        shows("yes", "[ $(wc -c < /projected/token) -gt 100 ] && echo yes"),
	"volume-memory":       shows("tmpfs 8192", "echo $(stat -fc %T /memory) $(df -k /memory | tail -1 | awk '{print $2}')"),
	"volume-emptydir":     shows("x", "echo x > /disk/x; cat /disk/x"),
	"volume-subpath":      shows("hello", "echo hello > /sub/f; cat /disk/a/b/f"),
	"volume-subpath-expr": shows("hi", "echo hi > /expr/f; cat /disk/vols/f"),
	"volume-subpath-file": shows("two", "cat /etc/cmfile"),
	"volume-read-only":    refuses("vols", "Read-only file system", "touch /ro/x"),
	"hostpath-directory":  shows("passwd", "ls /host-etc | grep -x passwd"),
	"hostpath-create":     shows("made", "echo made > /made/f; cat /made/f"),
	"hostpath-missing": func(c *cluster) {
		c.apply(pod("hostpath-missing", "touch /made/f; "+asleep, "volumeMounts: [{name: v, mountPath: /made}]", "volumes: [{name: v, hostPath: {path: /run/hostpath-missing/deep}}]"))
		c.ready("hostpath-missing")
		c.eventually(func() error { _, err := c.in("", "rm", "/run/hostpath-missing/deep/f"); return err })
		c.kubectl("delete", "pod", "hostpath-missing", "--wait=false")
	},
	"hostpath-file":      shows("yes", "[ -s /host-name ] && echo yes"),
	"volume-image":       shows("agnhost", "ls /image | grep -x agnhost"),
	"volume-image-write": refuses("vols", "Read-only file system", "touch /image/x"),
	"configmap-update": func(c *cluster) {
		c.kubectl("patch", "configmap", "cm", "-p", `{"data":{"a":"changed"}}`)
		shows("changed", "cat /cm/a")(c)
	},
	"persistent-volume": func(c *cluster) {
		c.apply(`apiVersion: v1
kind: PersistentVolume
metadata: {name: pv}
spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], storageClassName: manual, hostPath: {path: /var/lib/cni/subpod-pv, type: DirectoryOrCreate}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: pvc}
spec: {accessModes: [ReadWriteOnce], storageClassName: manual, resources: {requests: {storage: 1Mi}}}
---
` + pod("claims", "echo kept > /data/f; cat /data/f; "+asleep, "volumeMounts: [{name: d, mountPath: /data}]", "volumes: [{name: d, persistentVolumeClaim: {claimName: pvc}}]"))
		c.ready("claims")
		c.eventually(func() error { return c.is("kept", "logs", "claims") })
	},
})
