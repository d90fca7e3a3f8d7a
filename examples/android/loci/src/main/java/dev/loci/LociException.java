package dev.loci;

import java.nio.charset.StandardCharsets;

/** A call of the library that failed, with what it expected and found. */
public final class LociException extends RuntimeException {
    private static final long serialVersionUID = 1L;
    private final int status;

    LociException(int status, byte[] message) {
        super(new String(message, StandardCharsets.UTF_8));
        this.status = status;
    }

    /** One of the negative codes of loci.h. */
    public int status() {
        return status;
    }
}
