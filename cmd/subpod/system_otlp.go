package main

import (
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/subpod/subpod/pkg/api"
)

// What follows is ExportTraceServiceRequest of OpenTelemetry's protocol 1.x in its JSON
// form: IDs in hexadecimal, 64-bit numbers as strings, enumerations as numbers.
type (
	otlpRequest struct {
		ResourceSpans []otlpResource `json:"resourceSpans"`
	}
	otlpResource struct {
		Resource   otlpAttributes `json:"resource"`
		ScopeSpans []otlpScope    `json:"scopeSpans"`
	}
	otlpAttributes struct {
		Attributes []otlpAttribute `json:"attributes"`
	}
	otlpScope struct {
		Scope otlpName   `json:"scope"`
		Spans []otlpSpan `json:"spans"`
	}
	otlpName struct {
		Name string `json:"name"`
	}
	otlpAttribute struct {
		Key   string    `json:"key"`
		Value otlpValue `json:"value"`
	}
	otlpValue struct {
		String string `json:"stringValue"`
	}
	otlpSpan struct {
		TraceID    string          `json:"traceId"`
		SpanID     string          `json:"spanId"`
		Parent     string          `json:"parentSpanId,omitempty"`
		Name       string          `json:"name"`
		Kind       int             `json:"kind"`
		Start      string          `json:"startTimeUnixNano"`
		End        string          `json:"endTimeUnixNano"`
		Attributes []otlpAttribute `json:"attributes,omitempty"`
		Status     otlpStatus      `json:"status"`
	}
	otlpStatus struct {
		Code    int    `json:"code,omitempty"`
		Message string `json:"message,omitempty"`
	}
)

// Values of enumerations.
const (
	otlpInternal = 1
	otlpServer   = 2
	otlpError    = 2
)

func printTraceOTLP(w io.Writer, t *api.Trace) error {
	return printLine(w, otlpRequest{[]otlpResource{{
		Resource:   otlpAttributes{[]otlpAttribute{attribute("service.name", "subpod")}},
		ScopeSpans: []otlpScope{{otlpName{"github.com/subpod/subpod"}, otlpSpans(t)}},
	}}})
}

func attribute(key, value string) otlpAttribute { return otlpAttribute{key, otlpValue{value}} }

// otlpSpans returns the request's span and those of its steps.
func otlpSpans(t *api.Trace) []otlpSpan {
	nano := func(d time.Duration) string { return strconv.FormatInt(t.Start.Add(d).UnixNano(), 10) }
	root := otlpSpan{
		TraceID: t.TraceID.String(), SpanID: t.Step(-1).String(), Name: t.Name, Kind: otlpServer,
		Start: nano(0), End: nano(t.Took), Attributes: []otlpAttribute{attribute("rpc.system", "grpc"), attribute("rpc.method", t.Name)},
	}
	if t.Parent != 0 {
		root.Parent = t.Parent.String()
	}
	for _, k := range slices.Sorted(maps.Keys(t.Attributes)) {
		root.Attributes = append(root.Attributes, attribute("subpod."+k, t.Attributes[k]))
	}
	if t.Code != "OK" {
		root.Status = otlpStatus{otlpError, t.Error}
		root.Attributes = append(root.Attributes, attribute("rpc.grpc.status", t.Code))
	}
	spans := []otlpSpan{root}
	for i, s := range t.Steps {
		span := otlpSpan{TraceID: root.TraceID, SpanID: t.Step(i).String(), Parent: t.Step(s.Parent).String(), Name: s.Name, Kind: otlpInternal, Start: nano(s.Start), End: nano(s.Start + s.Took)}
		if s.Failed {
			span.Status.Code = otlpError
		}
		spans = append(spans, span)
	}
	return spans
}
