package dev.loci;

import java.nio.charset.StandardCharsets;

/** A stretch of memory that was read for an answer. */
public final class Passage {
    /** As `memory`: what left the session's own window. */
    public static final int OWN = -1;

    /** What was given when it was remembered, or null. */
    public final String source;
    /** Within the memory. */
    public final long firstToken;
    public final long tokenCount;
    /** Which attached memory, in their order, or OWN. */
    public final int memory;
    /** Larger was wanted more. */
    public final float score;

    Passage(byte[] source, long firstToken, long tokenCount, int memory, float score) {
        this.source = source == null ? null : new String(source, StandardCharsets.UTF_8);
        this.firstToken = firstToken;
        this.tokenCount = tokenCount;
        this.memory = memory;
        this.score = score;
    }
}
