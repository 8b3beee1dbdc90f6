package api

// CommandHeader is a gRPC header of the requests that subpod's own commands make. It
// comes from no manifest: what a pod's author writes reaches the CRI by a kubelet,
// which sends none.
const CommandHeader = "subpod-command"

// reserved are the labels and annotations that the server or the commands act on.
var reserved = []string{LabelMadeBy, LabelWorkload, AnnotationRunID, AnnotationWhenDone, AnnotationOwnIDs, AnnotationNetwork, AnnotationNetworks, AnnotationUser, AnnotationSubPaths, AnnotationMemoryVolumes, AnnotationOptions, AnnotationShmSize}

// Reserved returns a label or annotation that only subpod's own commands may set, ""
// when the maps have none.
func Reserved(maps ...map[string]string) string {
	for _, m := range maps {
		for _, key := range reserved {
			if _, ok := m[key]; ok {
				return key
			}
		}
	}
	return ""
}
