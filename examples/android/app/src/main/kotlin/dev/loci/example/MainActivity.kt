package dev.loci.example

import android.content.ComponentCallbacks2
import android.os.Bundle
import android.widget.ScrollView
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.lifecycle.lifecycleScope
import dev.loci.LociException
import dev.loci.Model
import dev.loci.Session
import kotlinx.coroutines.launch

/** Asks one question of assets/model.gguf and shows the answer as it is written. Leaving the screen cancels it. */
class MainActivity : ComponentActivity() {
    private var model: Model? = null
    private var session: Session? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val answer = TextView(this)
        setContentView(ScrollView(this).apply { addView(answer) })
        lifecycleScope.launch {
            try {
                val model = assets.openFd("model.gguf").use { Model(it.parcelFileDescriptor.fd, it.startOffset, it.length) }
                val session = Session(model, contextLength = 2048)
                this@MainActivity.model = model
                this@MainActivity.session = session
                session.prompt(model.chat("user" to "Why is the sky blue?"))
                session.generate(200).collect { answer.append(it) }
            } catch (e: LociException) {
                answer.text = e.message
            }
        }
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        if (level >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND) model?.trim()
    }

    override fun onDestroy() {
        super.onDestroy()
        session?.close()
        model?.close()
    }
}
