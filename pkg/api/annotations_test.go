package api

import "testing"

func TestWritableCgroup(t *testing.T) {
	own := func(value string) map[string]string { return map[string]string{AnnotationCgroup: value} }
	crio := map[string]string{AnnotationCgroupCRIO: "true"}
	for _, c := range []struct {
		container, pod map[string]string
		want, bad      bool
	}{
		{},
		{pod: own(CgroupWritable), want: true},
		{container: own(CgroupWritable), want: true},
		{pod: crio, want: true},
		{pod: map[string]string{AnnotationCgroupCRIO: "false"}},
		{pod: map[string]string{AnnotationCgroupCRIO: ""}},
		{container: own("rw"), pod: crio, bad: true},
		{container: map[string]string{"a": "b"}, pod: own(""), bad: true},
	} {
		got, err := WritableCgroup(c.container, c.pod)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%v, %v: %t, %v", c.container, c.pod, got, err)
		}
	}
}
